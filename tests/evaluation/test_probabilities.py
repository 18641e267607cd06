"""Metrics of probabilities: against scikit-learn, against their definitions, and under resampling."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from rbft.errors import DataError
from rbft.evaluation.probabilities import (
    PROBABILITY_METRICS,
    WITH_INTERVALS,
    ProbabilityMetrics,
    evaluate_probabilities,
    probability_matrix,
    resample_probabilities,
    weighted_auroc,
)
from rbft.evaluation.reliability import reliability_plot
from rbft.records import Prediction

LABELS = ("normal", "offensive", "hateful")


def _predictions(seed: int, num_clips: int = 80, num_labels: int = 3, *, step: float = 0.0) -> list[Prediction]:
    """A system that knows something; with `step`, probabilities are rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = LABELS[:num_labels]
    rows = []
    for i in range(num_clips):
        truth = i if i < num_labels else int(rng.choice(num_labels))
        logits = rng.normal(size=num_labels) + 1.5 * np.eye(num_labels)[truth]
        shares = np.exp(logits) / np.exp(logits).sum()
        if step:
            shares = np.maximum(np.round(shares / step) * step, step)
            shares /= shares.sum()
        rows.append(
            Prediction(f"clip-{i:03d}", labels[truth], labels[int(shares.argmax())], dict(zip(labels, shares.tolist(), strict=True)))
        )
    return rows


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_labels=st.sampled_from([2, 3]), step=st.sampled_from([0.0, 0.1]))
def test_the_metrics_are_scikit_learns_with_and_without_ties(seed: int, num_labels: int, step: float) -> None:
    predictions = _predictions(seed, num_labels=num_labels, step=step)
    shares, truth, _ = probability_matrix(predictions, LABELS[:num_labels])
    found = evaluate_probabilities(predictions, LABELS[:num_labels])
    assert found.auroc == pytest.approx(roc_auc_score(truth, shares[:, 1] if num_labels == 2 else shares, multi_class="ovr"))
    assert found.log_loss == pytest.approx(log_loss(truth, shares))
    assert found.brier == pytest.approx(brier_score_loss(truth, shares, labels=range(num_labels), scale_by_half=False))
    assert list(found.auroc_by_label) == list(LABELS[:num_labels])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_auroc_of_a_resample_is_that_of_the_clips_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, positive, counts = rng.integers(0, 6, 30) / 5, rng.random(30) < 0.4, rng.integers(0, 4, (3, 30))
    found = weighted_auroc(scores, positive, counts)
    for value, count in zip(found, counts, strict=True):
        truth = np.repeat(positive, count)
        if truth.any() and not truth.all():
            assert value == pytest.approx(roc_auc_score(truth, np.repeat(scores, count)))
        else:
            assert np.isnan(value)


def test_the_intervals_have_the_spread_of_a_bootstrap_that_draws_clips_one_by_one() -> None:
    predictions = _predictions(1, num_clips=120, num_labels=2)
    shares, truth, _ = probability_matrix(predictions, LABELS[:2])
    rng = np.random.default_rng(9)
    drawn = [rng.integers(len(truth), size=len(truth)) for _ in range(1000)]
    aurocs = [roc_auc_score(truth[rows], shares[rows, 1]) for rows in drawn]
    losses = [log_loss(truth[rows], shares[rows], labels=[0, 1]) for rows in drawn]
    found = evaluate_probabilities(predictions, LABELS[:2])
    assert found.ci95["auroc"] == pytest.approx(tuple(np.quantile(aurocs, (0.025, 0.975))), abs=0.015)
    assert found.ci95["log_loss"] == pytest.approx(tuple(np.quantile(losses, (0.025, 0.975))), abs=0.03)
    assert set(found.ci95) == set(WITH_INTERVALS)


def test_resamples_in_batches_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, truth, _ = probability_matrix(_predictions(2), LABELS)
    whole = resample_probabilities(shares, truth, 0)
    monkeypatch.setattr("rbft.evaluation.probabilities._CELLS_AT_ONCE", 1_000)
    parts = resample_probabilities(shares, truth, 0)
    assert len(whole["auroc"]) == len(parts["auroc"]) == 2001
    assert all(np.allclose(whole[name], parts[name], equal_nan=True) for name in PROBABILITY_METRICS)


def test_ece_is_the_weighted_distance_of_confidence_and_accuracy_in_each_bin() -> None:
    # Ten clips at 0.75, of which five are right; ten at 0.95, all right: 10/20 * |0.5 - 0.75| + 10/20 * |1 - 0.95| = 0.15.
    def clip(i: int, truth: str, sure: float) -> Prediction:
        return Prediction(f"{i}", truth, "normal", {"normal": sure, "offensive": 1 - sure})

    rows = [clip(i, "normal" if i < 5 else "offensive", 0.75) for i in range(10)] + [clip(i, "normal", 0.95) for i in range(10, 20)]
    found = evaluate_probabilities(rows, LABELS[:2])
    assert found.ece == pytest.approx(0.15)
    filled = {(each.low, each.high): (each.num_clips, each.confidence, each.accuracy) for each in found.bins if each.num_clips}
    assert filled[(0.7, 0.8)] == pytest.approx((10, 0.75, 0.5)) and filled[(0.9, 1.0)] == pytest.approx((10, 0.95, 1.0))
    assert sum(each.num_clips for each in found.bins) == 20


def test_a_probability_at_the_end_of_a_bin_belongs_to_the_bin_below() -> None:
    rows = [
        Prediction("a", "normal", "normal", {"normal": 0.5, "offensive": 0.5}),
        Prediction("b", "offensive", "normal", {"normal": 1.0, "offensive": 0.0}),
    ]
    found = evaluate_probabilities(rows, LABELS[:2])
    assert [each.num_clips for each in found.bins] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert np.isfinite(found.log_loss)  # a true label of probability 0 costs much, not infinitely much


def test_the_order_of_the_clips_does_not_matter_and_the_seed_does() -> None:
    predictions = _predictions(3)
    first = evaluate_probabilities(predictions, LABELS)
    assert evaluate_probabilities(predictions[::-1], LABELS) == first
    assert evaluate_probabilities(predictions, LABELS, seed=1).ci95 != first.ci95
    assert ProbabilityMetrics.model_validate_json(first.model_dump_json()) == first


def test_error_rows_are_left_out_and_counted() -> None:
    predictions = _predictions(4)
    found = evaluate_probabilities([*predictions, Prediction("broken", "normal", None, error_code="video_decode")], LABELS)
    assert (found.num_clips, found.num_without) == (80, 1)
    assert found.auroc == evaluate_probabilities(predictions, LABELS).auroc


def test_a_test_set_of_one_label_has_no_auroc_but_the_rest() -> None:
    rows = [Prediction(str(i), "normal", "normal", {"normal": 0.9, "offensive": 0.1}) for i in range(5)]
    found = evaluate_probabilities(rows, LABELS[:2])
    assert found.auroc is None and found.auroc_by_label == {} and "auroc" not in found.ci95
    assert found.ece == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("probabilities", "says"),
    [
        ({}, "no prediction has label probabilities"),
        ({"normal": 1.0}, "prediction x: has probabilities of normal; the labels are normal, offensive"),
        ({"normal": 0.9, "offensive": 0.9}, "they sum to 1.8000"),
        ({"normal": 1.5, "offensive": -0.5}, "no shares of 1"),
    ],
)
def test_what_are_no_probabilities_is_refused_with_the_id(probabilities: dict[str, float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        evaluate_probabilities([Prediction("x", "normal", "normal", probabilities)], LABELS[:2])


def test_the_reliability_plot_has_a_dot_a_filled_bin_where_confidence_and_accuracy_say() -> None:
    found = evaluate_probabilities(_predictions(6), LABELS)
    plot = ElementTree.fromstring(reliability_plot(found, description='of "<a>"', size=252))  # 200 units for 0 to 1, from (40, 212)
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in plot.iter("circle")]
    expected = [(40 + 200 * each.confidence, 212 - 200 * each.accuracy) for each in found.bins if each.num_clips]
    assert np.allclose(dots, expected, atol=0.06)
    assert plot.get("aria-label") == 'of "<a>"'
