"""Studies over repetitions: means, pairing, and intervals against cases whose answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rbft.errors import DataError
from rbft.evaluation.compare import compare_predictions
from rbft.evaluation.study import make_study
from rbft.records import Prediction

LABELS = ("normal", "abnormal")


def predictions(right: list[bool], prefix: str = "v", truth: str = "abnormal") -> list[Prediction]:
    wrong = next(label for label in LABELS if label != truth)
    return [Prediction(f"{prefix}{i:04d}", truth, truth if is_right else wrong) for i, is_right in enumerate(right)]


def mixed(normal_right: int, abnormal_right: int, size: int = 50) -> list[Prediction]:
    """`size` clips of each label, so many of each answered rightly."""
    normal = predictions([i < normal_right for i in range(size)], "n", "normal")
    return normal + predictions([i < abnormal_right for i in range(size)], "a")


def test_values_are_means_over_repetitions() -> None:
    study = make_study([{"a": mixed(50, 20), "b": mixed(40, 10)}, {"a": mixed(50, 30), "b": mixed(40, 40)}], LABELS)
    assert study.num_repetitions == 2
    assert study.estimate("a", "balanced_accuracy").repetitions == pytest.approx((0.7, 0.8))
    assert study.estimate("a", "recall abnormal").value == pytest.approx(0.5)
    difference = study.difference("a", "b", "balanced_accuracy")
    assert difference.repetitions == pytest.approx((0.2, 0.0)) and difference.value == pytest.approx(0.1)


def test_where_clips_do_not_vary_the_interval_is_that_of_drawing_repetitions() -> None:
    # In each repetition a system is right about all clips of a label or none, so drawing clips changes nothing.
    shares = [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    repetitions = [
        {"a": predictions([x == 1] * 30, "n", "normal") + predictions([y == 1] * 30, "a"), "b": mixed(0, 30, 30)} for x, y in shares
    ]
    found = make_study(repetitions, LABELS).difference("a", "b", "balanced_accuracy")
    values = [(x + y) / 2 - 0.5 for x, y in shares]
    every_draw = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    assert found.ci95 == pytest.approx(tuple(np.quantile(every_draw, (0.025, 0.975), method="inverted_cdf")), abs=1e-9)


def test_with_one_repetition_it_is_the_paired_bootstrap_over_clips() -> None:
    rng = np.random.default_rng(5)
    a, b = (predictions(list(rng.random(400) < p)) + predictions(list(rng.random(200) < p), "n", "normal") for p in (0.8, 0.7))
    found = make_study([{"a": a, "b": b}], LABELS).difference("a", "b", "balanced_accuracy")
    known = compare_predictions(a, b, LABELS, names=("a", "b")).differences["balanced_accuracy"]
    assert found.value == pytest.approx(known.value)
    assert found.ci95 == pytest.approx(known.ci95, abs=0.006)  # Monte-Carlo error of 2,000 draws


def test_worlds_that_differ_widen_the_interval() -> None:
    alike = [{"a": mixed(40, 30), "b": mixed(40, 25)}] * 4
    unlike = [{"a": mixed(40, 25 + shift), "b": mixed(40, 25)} for shift in (-15, 0, 10, 25)]
    narrow, wide = (make_study(each, LABELS).difference("a", "b", "balanced_accuracy") for each in (alike, unlike))
    assert narrow.value == pytest.approx(wide.value)
    assert np.diff(wide.ci95) > 1.5 * np.diff(narrow.ci95)


def test_pairing_cancels_what_the_systems_share() -> None:
    # Each is right about a random 70 %: the same ones twice, or others.
    rng = np.random.default_rng(1)
    rows = [list(rng.random(300) < 0.7) for _ in range(2)]
    same, other = ([{"a": predictions(rows[0]), "b": predictions(row)}] for row in rows)
    assert make_study(same, LABELS).difference("a", "b", "accuracy").ci95 == (0.0, 0.0)
    assert make_study(other, LABELS).difference("a", "b", "accuracy").ci95[1] > 0.03


def test_seeds_tested_on_the_same_clips_are_not_as_many_more_clips() -> None:
    rows = mixed(40, 30)
    one = make_study([{"a": rows}], LABELS).estimate("a", "accuracy")
    shared, drawn_anew = (make_study([{"a": rows}] * 4, LABELS, same_clips=each).estimate("a", "accuracy") for each in (True, False))
    assert shared.value == one.value
    # Four seeds that answer alike say no more than one; as four test sets they would halve the interval.
    assert np.diff(shared.ci95) == pytest.approx(np.diff(one.ci95), rel=0.1)
    assert np.diff(drawn_anew.ci95) == pytest.approx(np.diff(one.ci95) / 2, rel=0.1)
    with pytest.raises(DataError, match="tested on different clips"):
        make_study([{"a": rows}, {"a": rows[1:]}], LABELS, same_clips=True)


def test_unpaired_clips_and_other_systems_are_refused() -> None:
    with pytest.raises(DataError, match="other clips"):
        make_study([{"a": mixed(1, 1), "b": mixed(1, 1)[1:]}], LABELS)
    with pytest.raises(DataError, match="differ in their systems"):
        make_study([{"a": mixed(1, 1)}, {"b": mixed(1, 1)}], LABELS)
    with pytest.raises(DataError, match="at least one"):
        make_study([], LABELS)
