"""Label likelihoods by the prefix tree against the sum they stand for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.engines.labels import (
    Prefix,
    depth_below,
    label_tree,
    next_to_read,
    probabilities,
    read_on_the_way,
    sum_over_tree,
    tokens_below,
)

END = 0
VOCABULARY = 6

answers = st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=4).map(tuple), min_size=1, max_size=6, unique=True).map(
    lambda sequences: {f"label {i}": (*tokens, END) for i, tokens in enumerate(sequences)}
)
"""Few tokens, so that many labels begin alike, and one may be the beginning of another."""


def next_token_logprobs(prefix: Prefix, seed: int) -> np.ndarray:
    """[VOCABULARY] of a language model that is a table."""
    logits = np.random.default_rng([seed, *prefix]).normal(size=VOCABULARY) * 3
    return np.asarray(logits - np.log(np.exp(logits).sum()))


@given(answers, st.integers(0, 999))
def test_the_tree_gives_every_label_the_sum_over_its_own_tokens(answers: dict[str, Prefix], seed: int) -> None:
    tree = label_tree(answers)
    reads = {prefix: {token: float(next_token_logprobs(prefix, seed)[token]) for token in tokens} for prefix, tokens in tree.items()}
    direct = {
        label: sum(float(next_token_logprobs(tokens[:place], seed)[token]) for place, token in enumerate(tokens))
        for label, tokens in answers.items()
    }
    assert sum_over_tree(answers, reads) == pytest.approx(direct, abs=1e-9)


@given(answers)
def test_the_tree_has_each_shared_beginning_once_and_nothing_else(answers: dict[str, Prefix]) -> None:
    tree = label_tree(answers)
    assert set(tree) == {tokens[:place] for tokens in answers.values() for place in range(len(tokens))}
    assert next(iter(tree)) == ()
    edges = {(*prefix, token) for prefix, tokens in tree.items() for token in tokens}
    assert edges == {tokens[: place + 1] for tokens in answers.values() for place in range(len(tokens))}


def test_labels_that_begin_alike_share_their_reads() -> None:
    tree = label_tree({"ab": (1, 2, END), "ac": (1, 3, END), "a": (1, END)})
    assert tree == {(): [1], (1,): [END, 2, 3], (1, 2): [END], (1, 3): [END]}


def test_all_sequences_of_a_model_together_have_probability_one() -> None:
    """The likelihoods are those of whole answers, the end token among them: over all of them they add up."""
    every = [tokens for length in range(3) for tokens in itertools.product(range(1, VOCABULARY), repeat=length)]
    answers = {str(tokens): (*tokens, END) for tokens in every}
    tree = label_tree(answers)
    reads = {prefix: {token: float(next_token_logprobs(prefix, 5)[token]) for token in tokens} for prefix, tokens in tree.items()}
    ended = math.fsum(math.exp(value) for value in sum_over_tree(answers, reads).values())
    going_on = math.fsum(
        math.exp(float(next_token_logprobs((), 5)[a] + next_token_logprobs((a,), 5)[b] + next_token_logprobs((a, b), 5)[c]))
        for a, b, c in itertools.product(range(1, VOCABULARY), repeat=3)
    )
    assert ended + going_on == pytest.approx(1.0, abs=1e-9)


@given(st.dictionaries(st.text(max_size=3), st.floats(-2000, 0), min_size=1, max_size=6))
def test_probabilities_add_up_to_one_and_keep_the_order_and_the_odds(logprobs: dict[str, float]) -> None:
    shares = probabilities(logprobs)
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    for one, other in itertools.combinations(logprobs, 2):
        if min(shares[one], shares[other]) > 1e-200:
            assert math.log(shares[one] / shares[other]) == pytest.approx(logprobs[one] - logprobs[other], abs=1e-6)


@given(answers, st.integers(0, 999), st.integers(1, 6))
def test_greedy_walks_read_the_whole_tree_wherever_they_go(answers: dict[str, Prefix], seed: int, most_tokens: int) -> None:
    """Each begins at a node that has not been read and reads until it leaves the tree, ends, or may write no more."""
    tree = label_tree(answers)
    reads: dict[Prefix, dict[int, float]] = {}
    num_walks = 0
    while nodes := next_to_read(tree, reads):
        for node in nodes:
            written: list[int] = []
            logprobs: list[dict[int, float]] = []
            for _ in range(min(most_tokens, depth_below(tree, node))):
                table = next_token_logprobs((*node, *written), seed)
                logprobs.append({token: float(table[token]) for token in tokens_below(tree, node)})
                written.append(int(table.argmax()))
                if written[-1] == END:
                    break
            walk = read_on_the_way(tree, node, written, logprobs)
            assert node in walk and not walk.keys() & reads.keys()
            reads |= walk
            num_walks += 1
    assert {node: set(read) for node, read in reads.items()} == {node: set(tokens) for node, tokens in tree.items()}
    assert all(value == next_token_logprobs(node, seed)[token] for node, read in reads.items() for token, value in read.items())
    assert num_walks <= len(tree)


def test_text_that_goes_along_a_label_reads_all_of_it() -> None:
    tree = label_tree({"ab": (1, 2, END), "ac": (1, 3, END), "d": (4, END)})
    choices = dict.fromkeys(tokens_below(tree, ()), -1.0)
    reads = read_on_the_way(tree, (), (1, 2, END), [choices] * 3)
    assert list(reads) == [(), (1,), (1, 2)] and depth_below(tree, ()) == 3
    assert next_to_read(tree, reads) == [(1, 3), (4,)]


def test_text_that_leaves_the_labels_reads_no_further() -> None:
    tree = label_tree({"ab": (1, 2, END), "d": (4, END)})
    choices = dict.fromkeys(tokens_below(tree, ()), -1.0)
    reads = read_on_the_way(tree, (), (5, 1, 2), [choices] * 3)
    assert reads == {(): {1: -1.0, 4: -1.0}}
    assert next_to_read(tree, reads) == [(1,), (4,)], "and what is below them comes after"
