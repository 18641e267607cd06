"""Label likelihoods by the labels' token-prefix tree.

The log-likelihood of a label is the sum over its tokens (and the end token) of log p(token | prompt, tokens before). Labels that begin
alike share those terms: one next-token read per *inner node* of the tree gives every label's likelihood exactly.
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
