"""Label likelihoods by the labels' token-prefix tree.

The log-likelihood of a label is the sum over its tokens (and the end token) of log p(token | prompt, tokens before). Labels that begin
alike share those terms: one next-token read per *inner node* of the tree gives every label's likelihood exactly. Where greedy text goes
along a label, it reads the nodes on its way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Prefix = tuple[int, ...]


def label_tree(answers: Mapping[str, Sequence[int]]) -> dict[Prefix, list[int]]:
    """Prefix of answer tokens -> the tokens that may follow it in some answer, sorted; one entry per inner node.

    `answers` maps each label to its token ids, the end token last, so that no answer is a prefix of another.
    """
    tree: dict[Prefix, set[int]] = {}
    for tokens in answers.values():
        for position, token in enumerate(tokens):
            tree.setdefault(tuple(tokens[:position]), set()).add(token)
    return {prefix: sorted(following) for prefix, following in sorted(tree.items())}


def tokens_below(tree: Mapping[Prefix, Sequence[int]], node: Prefix) -> list[int]:
    """The tokens that may come, at any place, after `node` in some answer; sorted."""
    below = (following for prefix, following in tree.items() if prefix[: len(node)] == node)
    return sorted({token for following in below for token in following})


def depth_below(tree: Mapping[Prefix, Sequence[int]], node: Prefix) -> int:
    """The most inner nodes on one way down from `node`, itself among them."""
    return 1 + max(len(prefix) for prefix in tree if prefix[: len(node)] == node) - len(node)


def next_to_read(tree: Mapping[Prefix, Sequence[int]], reads: Mapping[Prefix, object]) -> list[Prefix]:
    """The inner nodes not in `reads` that no other such node is above of: reads begin there, and may go on below."""
    return [node for node in tree if node not in reads and (not node or node[:-1] in reads)]


def read_on_the_way(
    tree: Mapping[Prefix, Sequence[int]], node: Prefix, written: Sequence[int], logprobs: Sequence[Mapping[int, float]]
) -> dict[Prefix, dict[int, float]]:
    """What the tokens `written` after `node` read of the tree, until they leave it; `logprobs` are what each of them was chosen from."""
    reads: dict[Prefix, dict[int, float]] = {}
    for token, choices in zip(written, logprobs, strict=True):
        if node not in tree or not choices.keys() >= set(tree[node]):
            break
        reads[node] = {each: choices[each] for each in tree[node]}
        node = (*node, token)
    return reads


def sum_over_tree(answers: Mapping[str, Sequence[int]], reads: Mapping[Prefix, Mapping[int, float]]) -> dict[str, float]:
    """Label -> log-likelihood, from the next-token log-probabilities read at each inner node."""
    return {
        label: math.fsum(reads[tuple(tokens[:position])][token] for position, token in enumerate(tokens))
        for label, tokens in answers.items()
    }


def probabilities(logprobs: Mapping[str, float]) -> dict[str, float]:
    """The label likelihoods normalised over the labels."""
    top = max(logprobs.values())
    weights = {label: math.exp(value - top) for label, value in logprobs.items()}
    total = math.fsum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
