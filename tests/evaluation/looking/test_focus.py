"""The share of attention inside boxes, its chance level, and intervals against scipy's bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from rbft.errors import DataError
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.boxes import Box, boxes_in_frames, covered
from rbft.evaluation.looking.focus import Focus, compare_enrichment, enrichment, focus
from tests.samples import random_clip


def attention_of(grid_THW: np.ndarray) -> AttentionMap:
    """A map with half of the attention on text."""
    grid_THW = (grid_THW / grid_THW.sum() / 2).astype(np.float32)
    return AttentionMap(np.concatenate([grid_THW.ravel(), [0.5]]).astype(np.float32), grid_THW)


@given(st.floats(0, 0.7), st.floats(0, 0.7), st.floats(0.1, 0.3))
def test_even_attention_is_at_chance_whatever_the_boxes(x: float, y: float, side: float) -> None:
    clip = random_clip(5)
    covered_THW = covered(boxes_in_frames([Box(x, y, x + side, y + side)], clip), 56, 84)
    found = focus(attention_of(np.ones((3, 2, 3))), covered_THW)
    assert found is not None
    assert found.inside == pytest.approx(found.area)
    assert found.area == pytest.approx(covered_THW.mean())


def test_attention_on_one_token_counts_as_far_as_the_token_is_covered() -> None:
    grid = np.zeros((2, 2, 3))
    grid[1, 0, 2] = 1
    clip = random_clip(4)
    half_of_it = covered(boxes_in_frames([Box(5 / 6, 0, 1, 0.5)], clip), 56, 84)
    found = focus(attention_of(grid), half_of_it)
    assert found is not None
    assert found.inside == 0.5 and found.area == pytest.approx(1 / 12)
    later_frame_only = half_of_it & (np.arange(4) == 3)[:, None, None]
    found = focus(attention_of(grid), later_frame_only)
    assert found is not None
    assert found.inside == 0.25 and found.area == pytest.approx(1 / 48)


def test_where_boxes_fill_nothing_or_everything_there_is_nothing_to_measure() -> None:
    for covers in (np.zeros((4, 56, 84), dtype=bool), np.ones((4, 56, 84), dtype=bool)):
        assert focus(attention_of(np.ones((2, 2, 3))), covers) is None


def test_enrichment_is_the_ratio_of_means_with_the_bootstraps_interval() -> None:
    rng = np.random.default_rng(0)
    area = rng.uniform(0.1, 0.3, 80)
    inside = area * rng.uniform(1, 2, 80)
    found = enrichment({str(i): Focus(*pair) for i, pair in enumerate(zip(inside, area, strict=True))})
    assert found.enrichment == pytest.approx(inside.mean() / area.mean())

    def ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(a.mean(axis=axis) / b.mean(axis=axis))

    theirs = bootstrap((inside, area), ratio, paired=True, vectorized=True, method="percentile", n_resamples=4000, rng=1)
    assert found.enrichment_ci95 == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert found.enrichment_ci95[0] < found.enrichment < found.enrichment_ci95[1]
    assert found.inside_ci95[0] < found.inside < found.inside_ci95[1]


def test_a_model_does_not_differ_from_itself_and_differs_from_one_that_looks_elsewhere() -> None:
    rng = np.random.default_rng(0)
    ours = {str(i): Focus(float(rng.uniform(0.3, 0.5)), 0.2) for i in range(30)}
    theirs = {id_: Focus(each.inside - 0.1, each.area) for id_, each in reversed(ours.items())}
    same = compare_enrichment(ours, ours)
    assert (same.value, same.ci95) == (0, (0, 0))
    less = compare_enrichment(ours, theirs)
    assert less.value == pytest.approx(0.5) and less.ci95 == pytest.approx((0.5, 0.5))


def test_models_on_different_videos_are_not_compared_and_none_is_no_number() -> None:
    with pytest.raises(DataError, match="different videos: b"):
        compare_enrichment({"a": Focus(0.5, 0.5)}, {"a": Focus(0.5, 0.5), "b": Focus(0.5, 0.5)})
    with pytest.raises(DataError, match="no video"):
        enrichment({})
