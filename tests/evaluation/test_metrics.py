"""Metrics of one system: against scikit-learn, against intervals that theory gives, and on rows that must be refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from rbft.errors import DataError
from rbft.evaluation.metrics import METRICS, Metrics, evaluate_predictions, metrics_from_confusion, score_confusions
from rbft.records import Prediction

NO_ANSWER = "no answer"
LABELS = ("normal", "offensive", "hateful", "other")

matrices = st.integers(2, 4).flatmap(
    lambda num_labels: hnp.arrays(np.int64, (num_labels, num_labels + 1), elements=st.integers(0, 30)).filter(lambda m: m.sum() > 0)
)


@settings(max_examples=50, deadline=None)
@given(matrix=matrices)
def test_metrics_agree_with_scikit_learn_on_any_confusion_matrix(matrix: np.ndarray) -> None:
    labels = LABELS[: len(matrix)]
    true, answered = _clips(matrix, labels)
    ours = metrics_from_confusion(matrix, labels)
    with warnings.catch_warnings():  # scikit-learn warns of labels without support; ours are defined there
        warnings.simplefilter("ignore")
        precision, recall, f1, support = precision_recall_fscore_support(true, answered, labels=labels, zero_division=0)
        balanced = balanced_accuracy_score(true, answered)
    assert ours.accuracy == pytest.approx(accuracy_score(true, answered))
    assert ours.balanced_accuracy == pytest.approx(balanced)
    for i, label in enumerate(labels):
        mine = ours.per_class[label]
        theirs = (precision[i], recall[i], f1[i], support[i])
        assert (mine.precision, mine.recall, mine.f1, mine.support) == pytest.approx(theirs)
    occurring = [label in true or label in answered for label in labels]
    assert ours.macro_f1 == pytest.approx(np.mean(f1[occurring]))
    assert np.array_equal(np.array(ours.confusion), confusion_matrix(true, answered, labels=[*labels, NO_ANSWER])[:-1])
    assert ours.coverage == pytest.approx(np.mean([each != NO_ANSWER for each in answered]))
    assert ours.majority_accuracy == pytest.approx(max(support) / len(true))


@settings(max_examples=20, deadline=None)
@given(matrix=matrices)
def test_an_interval_lies_within_zero_and_one_with_its_ends_in_order(matrix: np.ndarray) -> None:
    metrics = metrics_from_confusion(matrix, LABELS[: len(matrix)])
    assert set(metrics.ci95) == set(METRICS)
    assert all(0 <= low <= high <= 1 for low, high in metrics.ci95.values())


def test_the_accuracy_interval_is_the_binomials() -> None:
    # 300 of 400 right: the resampled accuracy is Binomial(400, 0.75) / 400, standard deviation sqrt(0.75 * 0.25 / 400) = 2.17 points.
    metrics = metrics_from_confusion([[150, 50], [50, 150]], ("normal", "abnormal"))
    deviation = math.sqrt(0.75 * 0.25 / 400)
    assert metrics.ci95["accuracy"] == pytest.approx((0.75 - 1.96 * deviation, 0.75 + 1.96 * deviation), abs=0.004)


def test_the_bootstrap_of_counts_has_the_spread_of_a_bootstrap_that_draws_clips() -> None:
    matrix = np.array([[40, 20, 4], [15, 70, 1]])
    true, answered = np.repeat(np.indices(matrix.shape).reshape(2, -1), matrix.ravel(), axis=1)
    rng = np.random.default_rng(5)
    resampled = np.zeros((2000, *matrix.shape), dtype=np.int64)
    for resample in resampled:
        drawn = rng.integers(len(true), size=len(true))
        np.add.at(resample, (true[drawn], answered[drawn]), 1)
    by_clips = score_confusions(resampled)
    metrics = metrics_from_confusion(matrix, ("normal", "abnormal"))
    for name in METRICS:
        assert metrics.ci95[name] == pytest.approx(tuple(np.quantile(by_clips[name], (0.025, 0.975))), abs=0.01)


def test_the_same_seed_gives_the_same_intervals_in_any_order_of_clips_and_another_seed_others() -> None:
    predictions = [_prediction(str(i), "ab"[i % 2], "ab"[(i * i) % 3 % 2]) for i in range(101)]
    first = evaluate_predictions(predictions, "ab")
    assert evaluate_predictions(predictions[::-1], "ab") == first
    assert evaluate_predictions(predictions, "ab", seed=1).ci95 != first.ci95


def test_error_rows_and_unparseable_text_count_as_wrong_and_lower_the_coverage() -> None:
    predictions = [
        _prediction("right", "a", "a", generated="a", generated_label="a"),
        _prediction("wrong", "a", "b", generated="b", generated_label="b"),
        _prediction("unparseable", "b", "b", generated="a or b", generated_label=None),
        Prediction("broken", "b", None, error_code="video_decode"),
    ]
    likelihood, generate = (evaluate_predictions(predictions, "ab", mode) for mode in ("likelihood", "generate"))
    assert (likelihood.accuracy, likelihood.coverage) == (0.5, 0.75)
    assert likelihood.confusion == ((1, 1, 0), (0, 1, 1))
    assert (generate.accuracy, generate.coverage) == (0.25, 0.5)
    assert generate.confusion == ((1, 1, 0), (0, 0, 2))


def test_a_system_that_answers_nothing_scores_zero() -> None:
    metrics = evaluate_predictions([Prediction("x", "a", None), Prediction("y", "b", None)], "ab")
    assert (metrics.accuracy, metrics.balanced_accuracy, metrics.macro_f1, metrics.coverage) == (0, 0, 0, 0)


def test_a_label_that_never_occurs_does_not_lower_the_means() -> None:
    metrics = metrics_from_confusion([[5, 0, 0], [0, 7, 0], [0, 0, 0]], LABELS[:3])
    assert (metrics.balanced_accuracy, metrics.macro_f1) == (1, 1)


def test_metrics_come_back_from_json_as_they_were() -> None:
    metrics = metrics_from_confusion([[3, 1, 0], [2, 5, 1]], ("normal", "abnormal"))
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics


@pytest.mark.parametrize(
    ("predictions", "says"),
    [
        ([], "no predictions"),
        ([Prediction("x", "a", "a"), Prediction("x", "a", "b")], "prediction x: is there twice"),
        ([Prediction("x", None, "a")], "prediction x: has no true label"),
        ([Prediction("x", "c", "a")], "prediction x: label 'c' is not of the task"),
        ([Prediction("x", "a", "c")], "prediction x: label 'c' is not of the task"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused_with_the_id(predictions: list[Prediction], says: str) -> None:
    with pytest.raises(DataError, match=says):
        evaluate_predictions(predictions, "ab")


@pytest.mark.parametrize("matrix", [[[1, 2, 3]], [[1, -1], [0, 2]], [[0, 0], [0, 0]], [[0.5, 1], [1, 1]]])
def test_what_is_no_matrix_of_counts_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(DataError, match="confusion matrix"):
        metrics_from_confusion(matrix, ("normal", "abnormal"))


def _clips(matrix: np.ndarray, labels: tuple[str, ...]) -> tuple[list[str], list[str]]:
    names = [*labels, NO_ANSWER]
    cells = [(names[i], names[j], int(count)) for (i, j), count in np.ndenumerate(matrix)]
    return [true for true, _, count in cells for _ in range(count)], [given for _, given, count in cells for _ in range(count)]


def _prediction(name: str, label: str, predicted: str, **rest: str | None) -> Prediction:
    return Prediction(name, label, predicted, **rest)  # type: ignore[arg-type]
