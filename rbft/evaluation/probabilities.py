"""Metrics of the label probabilities: how well they rank (AUROC), and whether they mean what they say (calibration, proper scores).

Measured on the clips that have probabilities: an error row has none and cannot be ranked, which `num_without` says; the metrics of
answers (`rbft.evaluation.metrics`) count it as wrong. The resamples of an interval draw clips, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from rbft.errors import DataError
from rbft.evaluation.metrics import NUM_RESAMPLES, Interval, answer_indices, interval95
from rbft.records import Prediction

PROBABILITY_METRICS = ("auroc", "ece", "log_loss", "brier")
WITH_INTERVALS = ("auroc", "log_loss", "brier")
"""Not ECE: noise can only add to a sum of distances, so that resamples of a well calibrated system all lie above its true ECE. Of simulated
test sets of 200 clips, none of the percentile intervals held it."""
NUM_BINS = 10
"""Of equal width, of the reliability plot and of ECE (Guo et al. 2017 take 15 for ten thousand images; test sets here are smaller)."""
_CELLS_AT_ONCE = 4_000_000
"""Counts of a batch of resamples, of 8 bytes."""


class ReliabilityBin(BaseModel):
    """The clips whose confidence, the probability of the likeliest label, lies in (low, high]; the first bin holds 0 as well."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    num_clips: int
    confidence: float
    """Mean of the bin's clips; 0 in an empty bin."""
    accuracy: float
    """Share of the bin's clips whose likeliest label is the true one; 0 in an empty bin."""


class ProbabilityMetrics(BaseModel):
    """What the label probabilities of a system are worth on the `num_clips` clips that have them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_clips: int
    num_without: int
    """Clips without probabilities (error rows, answers of a system that gives none), which count nowhere here."""
    auroc: float | None
    """Two labels: of the second. More: mean over the labels of one against the rest, those that are the truth of no or of every clip
    left out. None where no label is left."""
    auroc_by_label: dict[str, float]
    """Label -> one against the rest."""
    ece: float
    """Expected calibration error of the likeliest label, 0..1: the bins' distance between confidence and accuracy, weighted by clips."""
    log_loss: float
    """Mean negative log-probability of the true label, nats."""
    brier: float
    """Mean squared distance to the true label's unit vector, summed over the labels: 0..2 (Brier 1950)."""
    bins: tuple[ReliabilityBin, ...]
    ci95: dict[str, Interval]
    """Metric of `WITH_INTERVALS` -> percentile interval of the bootstrap over clips; no AUROC where it is None."""


def has_probabilities(predictions: Sequence[Prediction]) -> bool:
    """Whether any of `predictions` has label probabilities."""
    return any(prediction.probabilities for prediction in predictions)


def evaluate_probabilities(predictions: Sequence[Prediction], labels: Sequence[str], *, seed: int = 0) -> ProbabilityMetrics:
    """The metrics of one system's label probabilities, whatever the order of `predictions`.

    Raises:
        DataError: as `evaluate_predictions`; no clip has probabilities, or those of one are not of `labels` or do not sum to 1.
    """
    probabilities_NK, true_N, ids = probability_matrix(predictions, labels)
    resampled = resample_probabilities(probabilities_NK, true_N, seed)
    scores = {name: float(values[0]) for name, values in resampled.items()}
    by_label = {
        label: float(weighted_auroc(probabilities_NK[:, k], true_N == k, np.ones((1, len(ids))))[0]) for k, label in enumerate(labels)
    }
    intervals = {name: resampled[name][1:][np.isfinite(resampled[name][1:])] for name in WITH_INTERVALS}
    return ProbabilityMetrics(
        num_clips=len(ids),
        num_without=len(predictions) - len(ids),
        auroc=None if np.isnan(scores["auroc"]) else scores["auroc"],
        auroc_by_label={label: value for label, value in by_label.items() if not np.isnan(value)},
        ece=scores["ece"],
        log_loss=scores["log_loss"],
        brier=scores["brier"],
        bins=_bins(probabilities_NK, true_N),
        ci95={name: interval95(values) for name, values in intervals.items() if len(values) and not np.isnan(scores[name])},
    )


def probability_matrix(
    predictions: Sequence[Prediction], labels: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Probabilities [N, K], true labels [N] as indices into `labels`, and ids, of the predictions that have probabilities, sorted by id.

    Raises:
        DataError: as `evaluate_probabilities`.
    """
    answer_indices(predictions, labels, "likelihood")  # Refuses what cannot be evaluated at all.
    rows = sorted((row for row in predictions if row.probabilities), key=lambda row: row.id)
    if not rows:
        raise DataError("no prediction has label probabilities; AUROC and calibration need them, accuracy and the like do not")
    for row in rows:
        if set(row.probabilities) != set(labels):
            raise DataError(f"prediction {row.id}: has probabilities of {', '.join(row.probabilities)}; the labels are {', '.join(labels)}")
        if abs(sum(row.probabilities.values()) - 1) > 1e-3 or min(row.probabilities.values()) < 0:
            raise DataError(f"prediction {row.id}: its probabilities are no shares of 1; they sum to {sum(row.probabilities.values()):.4f}")
    probabilities_NK = np.array([[row.probabilities[label] for label in labels] for row in rows], dtype=np.float64)
    true_N = np.array([labels.index(str(row.label)) for row in rows], dtype=np.int64)
    return probabilities_NK / probabilities_NK.sum(axis=1, keepdims=True), true_N, [row.id for row in rows]


def resample_probabilities(probabilities_NK: NDArray[np.float64], true_N: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.float64]]:
    """Metric of `PROBABILITY_METRICS` -> its values [1 + NUM_RESAMPLES], of the data itself and of draws of as many clips from it.

    The same number of clips and the same seed give the same draws, so that two systems on the same clips are paired.
    """
    num_clips = len(true_N)
    rng = np.random.default_rng(seed)
    parts = [score_probabilities(probabilities_NK, true_N, np.ones((1, num_clips), dtype=np.int64))]
    at_once = max(1, _CELLS_AT_ONCE // num_clips)
    for start in range(0, NUM_RESAMPLES, at_once):
        counts_RN = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=min(at_once, NUM_RESAMPLES - start))
        parts.append(score_probabilities(probabilities_NK, true_N, counts_RN))
    return {name: np.concatenate([part[name] for part in parts]) for name in PROBABILITY_METRICS}


def score_probabilities(
    probabilities_NK: NDArray[np.float64], true_N: NDArray[np.int64], counts_RN: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Metric of `PROBABILITY_METRICS` -> its values [R], clip n counted counts_RN[r, n] times; NaN where a draw has no AUROC."""
    num_labels = probabilities_NK.shape[1]
    hit_N, confidence_N, bin_N = _likeliest(probabilities_NK, true_N)
    of_true_N = np.maximum(probabilities_NK[np.arange(len(true_N)), true_N], np.finfo(np.float64).eps)
    distances_N = np.square(probabilities_NK - np.eye(num_labels)[true_N]).sum(axis=1)
    gaps_NB = np.eye(NUM_BINS)[bin_N] * (hit_N - confidence_N)[:, None]
    chosen = range(1, 2) if num_labels == 2 else range(num_labels)
    totals_R = counts_RN.sum(axis=1)
    return {
        "auroc": _mean_of_defined(np.stack([weighted_auroc(probabilities_NK[:, k], true_N == k, counts_RN) for k in chosen])),
        "ece": np.abs(counts_RN @ gaps_NB).sum(axis=1) / totals_R,
        "log_loss": counts_RN @ -np.log(of_true_N) / totals_R,
        "brier": counts_RN @ distances_N / totals_R,
    }


def weighted_auroc(scores_N: NDArray[np.float64], positive_N: NDArray[np.bool_], counts_RN: ArrayLike) -> NDArray[np.float64]:
    """AUROC of `scores_N` [R], clip n counted counts_RN[r, n] times: the chance that a positive scores higher, half a point for ties.

    NaN where a draw has no positive or no negative. scikit-learn's takes one draw at a time, which is too slow for thousands.
    """
    _, place_N = np.unique(scores_N, return_inverse=True)
    order = np.argsort(place_N, kind="stable")
    starts = np.flatnonzero(np.diff(place_N[order], prepend=-1))  # the first clip of every distinct score
    sorted_RN = np.asarray(counts_RN, dtype=np.float64)[:, order]
    positives = np.add.reduceat(sorted_RN * positive_N[order], starts, axis=1)
    negatives = np.add.reduceat(sorted_RN * ~positive_N[order], starts, axis=1)
    won = (positives * (np.cumsum(negatives, axis=1) - negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def _likeliest(
    probabilities_NK: NDArray[np.float64], true_N: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Whether the likeliest label is the true one (0 or 1), its probability, and the bin of that, [N] each."""
    confidence_N = probabilities_NK.max(axis=1)
    bin_N = np.clip(np.ceil(confidence_N * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    return (probabilities_NK.argmax(axis=1) == true_N).astype(np.float64), confidence_N, bin_N


def _bins(probabilities_NK: NDArray[np.float64], true_N: NDArray[np.int64]) -> tuple[ReliabilityBin, ...]:
    hit_N, confidence_N, bin_N = _likeliest(probabilities_NK, true_N)
    found = []
    for number in range(NUM_BINS):
        inside = bin_N == number
        count = int(inside.sum())
        found.append(
            ReliabilityBin(
                low=number / NUM_BINS,
                high=(number + 1) / NUM_BINS,
                num_clips=count,
                confidence=float(confidence_N[inside].mean()) if count else 0.0,
                accuracy=float(hit_N[inside].mean()) if count else 0.0,
            )
        )
    return tuple(found)


def _mean_of_defined(values_KR: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    defined = np.isfinite(values_KR)
    count = defined.sum(axis=0)
    return np.divide(np.where(defined, values_KR, 0).sum(axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
