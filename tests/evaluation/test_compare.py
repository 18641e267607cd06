"""Paired differences: against theory, against a bootstrap that draws clips, and on systems that are not paired."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rbft.errors import DataError
from rbft.evaluation.compare import Comparison, compare_predictions
from rbft.evaluation.metrics import METRICS, evaluate_predictions
from rbft.records import Prediction

LABELS = ("normal", "abnormal")


def _system(answers: Sequence[tuple[str, str | None]]) -> list[Prediction]:
    return [Prediction(f"clip-{i:03d}", label, predicted) for i, (label, predicted) in enumerate(answers)]


def _random_pair(seed: int, num_clips: int = 200) -> tuple[list[Prediction], list[Prediction]]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(LABELS, num_clips, p=(0.35, 0.65))
    given = [*LABELS, None]

    def answers(share_right: float) -> list[Prediction]:
        return _system([(str(t), str(t) if rng.random() < share_right else given[rng.integers(3)]) for t in truth])

    return answers(0.7), answers(0.5)


def test_the_difference_is_that_of_the_two_systems_metrics() -> None:
    ours, theirs = _random_pair(0)
    comparison = compare_predictions(ours, theirs, LABELS, names=("rb-ft", "direct-sft-2"))
    first, second = (evaluate_predictions(each, LABELS) for each in (ours, theirs))
    for name in METRICS:
        assert comparison.differences[name].value == pytest.approx(getattr(first, name) - getattr(second, name))


def test_the_interval_is_the_one_theory_gives_for_paired_accuracy() -> None:
    # 1,000 clips, 80 only ours right, 40 only theirs: the difference has mean 0.04 and variance (0.12 - 0.04**2) / 1000.
    right, wrong = "normal", "abnormal"
    ours = _system([("normal", right)] * 80 + [("normal", wrong)] * 40 + [("normal", right)] * 880)
    theirs = _system([("normal", wrong)] * 80 + [("normal", right)] * 40 + [("normal", right)] * 880)
    difference = compare_predictions(ours, theirs, LABELS, names=("a", "b")).differences["accuracy"]
    reach = 1.96 * math.sqrt((0.12 - 0.04**2) / 1000)
    assert difference.value == pytest.approx(0.04)
    assert difference.ci95 == pytest.approx((0.04 - reach, 0.04 + reach), abs=0.003)
    assert difference.excludes_zero


def test_the_bootstrap_of_counts_has_the_spread_of_a_paired_bootstrap_that_draws_clips() -> None:
    ours, theirs = _random_pair(1, num_clips=120)
    rng = np.random.default_rng(3)
    deltas: dict[str, list[float]] = {name: [] for name in METRICS}
    truth, first, second = (np.array([index[each] for each in column]) for index, column in _columns(ours, theirs))
    for _ in range(2000):
        drawn = rng.integers(len(truth), size=len(truth))
        scores = [_scores(truth[drawn], answered[drawn]) for answered in (first, second)]
        for name in METRICS:
            deltas[name].append(scores[0][name] - scores[1][name])
    comparison = compare_predictions(ours, theirs, LABELS, names=("a", "b"))
    for name in METRICS:
        assert comparison.differences[name].ci95 == pytest.approx(tuple(np.quantile(deltas[name], (0.025, 0.975))), abs=0.015)


def test_a_system_compared_with_itself_differs_by_exactly_nothing() -> None:
    ours, _ = _random_pair(2)
    comparison = compare_predictions(ours, ours, LABELS, names=("a", "a"))
    assert all((each.value, each.ci95, each.excludes_zero) == (0, (0, 0), False) for each in comparison.differences.values())


def test_swapping_the_systems_turns_the_sign_and_the_order_of_rows_does_not_matter() -> None:
    ours, theirs = _random_pair(4)
    forward = compare_predictions(ours, theirs, LABELS, names=("a", "b"))
    assert compare_predictions(ours[::-1], theirs, LABELS, names=("a", "b")) == forward
    backward = compare_predictions(theirs, ours, LABELS, names=("b", "a"))
    assert backward.differences["macro_f1"].value == pytest.approx(-forward.differences["macro_f1"].value)


def test_a_comparison_comes_back_from_json_as_it_was() -> None:
    comparison = compare_predictions(*_random_pair(5), LABELS, names=("a", "b"))
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_systems_over_different_ids_are_refused_with_an_id() -> None:
    ours, theirs = _random_pair(6)
    with pytest.raises(DataError, match="rb-ft and zero-shot are not paired: clip-199"):
        compare_predictions(ours, theirs[:-1], LABELS, names=("rb-ft", "zero-shot"))


def test_systems_that_disagree_about_the_truth_are_refused_with_an_id() -> None:
    ours, theirs = _system([("normal", "normal")]), _system([("abnormal", "normal")])
    with pytest.raises(DataError, match="disagree about the true label of clip-000"):
        compare_predictions(ours, theirs, LABELS, names=("a", "b"))


def _columns(ours: list[Prediction], theirs: list[Prediction]) -> list[tuple[dict[str | None, int], list[str | None]]]:
    index: dict[str | None, int] = {**{label: i for i, label in enumerate(LABELS)}, None: len(LABELS)}
    return [
        (index, [each.label for each in ours]),
        (index, [each.predicted for each in ours]),
        (index, [each.predicted for each in theirs]),
    ]


def _scores(truth: np.ndarray, answered: np.ndarray) -> dict[str, float]:
    """The three metrics by their definitions, clip by clip."""
    recalls, f1s = [], []
    for label in range(len(LABELS)):
        right = np.sum((truth == label) & (answered == label))
        recalls.append(right / np.sum(truth == label))
        f1s.append(2 * right / (np.sum(truth == label) + np.sum(answered == label)))
    return {"accuracy": float(np.mean(truth == answered)), "balanced_accuracy": float(np.mean(recalls)), "macro_f1": float(np.mean(f1s))}
