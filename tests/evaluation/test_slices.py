"""Slices: who is in which, and that they are what they would be alone. And the trivial baselines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.errors import DataError
from rbft.evaluation.metrics import evaluate_predictions
from rbft.evaluation.slices import category_groups, duration_groups, slice_metrics
from rbft.evaluation.trivial import baseline_predictions
from rbft.records import Example, Prediction

LABELS = ("normal", "abnormal")


def _example(id_: str, category: str | None = None, label: str = "normal", split: str = "test") -> Example:
    return Example(id_, f"{id_}.mp4", label, split, category=category)


def test_a_video_of_several_categories_is_in_each_and_one_without_any_comes_last() -> None:
    examples = [_example("a", "Wildlife"), _example("b", "Security, Wildlife"), _example("c"), _example("d", "Security,Security , ")]
    assert category_groups(examples) == {"Security": {"b", "d"}, "Wildlife": {"a", "b"}, "no category": {"c"}}
    assert list(category_groups(examples)) == ["Security", "Wildlife", "no category"]
    assert category_groups([_example("a"), _example("b", " ")]) == {}


def test_a_duration_bin_holds_its_lower_end() -> None:
    groups = duration_groups({"a": 4.99, "b": 5.0, "c": 60.0, "d": 1e4})
    assert groups == {"under 5 s": {"a"}, "5 to 15 s": {"b"}, "15 to 30 s": set(), "30 to 60 s": set(), "60 s or more": {"c", "d"}}


@given(st.dictionaries(st.text(min_size=1), st.floats(1e-3, 1e5), max_size=20))
def test_every_clip_is_in_exactly_one_duration_bin(durations: dict[str, float]) -> None:
    groups = duration_groups(durations, (2.0, 10.0))
    assert sorted(id_ for ids in groups.values() for id_ in ids) == sorted(durations)


@pytest.mark.parametrize("edges", [(), (0.0, 5.0), (5.0, 5.0), (9.0, 5.0)])
def test_ends_that_do_not_rise_are_refused(edges: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="rising ends"):
        duration_groups({"a": 1.0}, edges)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_duration_is_refused_with_the_id(seconds: float) -> None:
    with pytest.raises(DataError, match="clip a: a duration"):
        duration_groups({"a": seconds})


def test_a_slice_has_the_metrics_of_its_clips_alone_and_empty_ones_are_left_out() -> None:
    rows = [Prediction(str(i), LABELS[i % 2], LABELS[i % 3 % 2]) for i in range(30)]
    groups = {"even": {str(i) for i in range(0, 30, 2)}, "none": set(), "all": {str(i) for i in range(40)}}
    found = slice_metrics(rows, LABELS, groups, by="category")
    assert [(part.by, part.name) for part in found] == [("category", "even"), ("category", "all")]
    assert found[0].metrics == evaluate_predictions(rows[::2], LABELS)
    assert found[1].metrics == evaluate_predictions(rows, LABELS)


def test_the_baselines_are_fitted_on_training_labels_and_do_not_see_the_tests() -> None:
    train = [_example(f"r{i}", "Wildlife", "abnormal", "train") for i in range(3)] + [
        _example(f"s{i}", "Package", "normal", "train") for i in range(2)
    ]
    test = [
        _example("a", "Wildlife", "normal"),
        _example("b", "Package", "normal"),
        _example("c", "Unseen", "normal"),
        _example("d", None, "abnormal"),
    ]
    found = baseline_predictions(train, test, LABELS)
    assert {name: [row.predicted for row in rows] for name, rows in found.items()} == {
        "always 'abnormal'": ["abnormal"] * 4,
        "each category's majority label": ["abnormal", "normal", "abnormal", "abnormal"],
    }
    assert [row.label for row in found["always 'abnormal'"]] == ["normal", "normal", "normal", "abnormal"]
    assert baseline_predictions([], test, LABELS) == {} == baseline_predictions(train, [], LABELS)
