"""How the samples of a worker's share are put together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.training.grouping import balanced_groups, similar_groups


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.integers(1, 4))
def test_every_sample_is_in_one_group_of_the_size_asked_for(lengths: list[int], size: int) -> None:
    lengths = lengths * size
    for group in (balanced_groups, similar_groups):
        groups = group(lengths, size)
        assert {len(indices) for indices in groups} == {size}
        assert sorted(index for indices in groups for index in indices) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 5000), min_size=8, max_size=8))
def test_packs_are_no_longer_than_those_of_the_given_order_and_the_longest_comes_first(lengths: list[int]) -> None:
    sums = [sum(lengths[i] for i in indices) for indices in balanced_groups(lengths, 2)]
    assert sums[0] == max(sums) <= max(sum(lengths[start : start + 2]) for start in range(0, 8, 2))


def test_pairs_are_balanced_and_rows_of_similar_length_padded_together() -> None:
    lengths = [100, 900, 200, 800]
    assert balanced_groups(lengths, 2) == [[0, 1], [2, 3]]
    assert similar_groups(lengths, 2) == [[1, 3], [0, 2]]


def test_a_share_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples do not divide into groups of 2"):
        balanced_groups([1, 2, 3], 2)
