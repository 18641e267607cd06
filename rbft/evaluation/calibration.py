"""Calibration: a temperature for the probabilities and, with two labels, a threshold for the answer, both fitted on the validation split.

Fitted on the test split they would make its numbers better than they are, so predictions of any other split are refused. The temperature
divides the labels' log-likelihoods before they become probabilities (Guo et al. 2017) and changes no ranking; the threshold is the
probability of the second label from which on it is answered, the one with the best balanced accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from rbft import storage
from rbft.errors import ArtifactError, DataError
from rbft.evaluation.probabilities import probability_matrix
from rbft.records import Example, Prediction

SPLIT = "validation"
_LOG_RANGE = (float(np.log(0.05)), float(np.log(100.0)))
"""Of the temperature. A validation split on which every likeliest label is right would drive it to 0, a hopeless one to infinity."""


class Calibration(BaseModel):
    """What was fitted for one system; `model_dump_json` writes it, `model_validate_json` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...]
    temperature: float = Field(gt=0)
    threshold: float | None = None
    """Probability, after the temperature, from which on the second of two labels is answered; None with more labels."""
    num_clips: int
    """Of the validation split."""
    log_loss_before: float
    log_loss_after: float
    """Both on the clips that it was fitted on, nats."""


def fit_calibration(predictions: Sequence[Prediction], examples: Sequence[Example], labels: Sequence[str]) -> Calibration:
    """The temperature and the threshold of a system, from its `predictions` for videos that `examples` has in the validation split.

    Raises:
        DataError: a prediction for a video of another split, or for none of `examples`; fewer than two labels occur; no probabilities.
    """
    from scipy.optimize import minimize_scalar

    _check_split(predictions, examples)
    probabilities_NK, true_N, ids = probability_matrix(predictions, labels)
    if len(set(true_N.tolist())) < 2:
        raise DataError(f"the {SPLIT} split has videos of one label only; calibration needs some of each")
    chosen = {row.id: row for row in predictions}
    logits_NK = np.stack([_logits(chosen[id_], labels) for id_ in ids])

    def loss(log_temperature: float) -> float:
        return _log_loss(_tempered(logits_NK, float(np.exp(log_temperature))), true_N)

    found = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    temperature = float(np.exp(found.x))
    threshold = _best_threshold(_tempered(logits_NK, temperature)[:, 1], true_N) if len(labels) == 2 else None
    return Calibration(
        labels=tuple(labels),
        temperature=temperature,
        threshold=threshold,
        num_clips=len(ids),
        log_loss_before=_log_loss(probabilities_NK, true_N),
        log_loss_after=float(found.fun),
    )


def apply_calibration(predictions: Sequence[Prediction], calibration: Calibration) -> list[Prediction]:
    """The predictions with tempered probabilities, answered by the threshold or the likeliest label; those without any stay as they are."""
    return [_apply(row, calibration) if row.probabilities else row for row in predictions]


def calibrate_one(logprobs: Mapping[str, float], calibration: Calibration) -> tuple[dict[str, float], str]:
    """Probabilities and answer for one video, from the labels' log-likelihoods, as `apply_calibration` gives them."""
    row = _apply(Prediction("", None, None, dict(logprobs), dict(logprobs)), calibration)
    assert row.predicted is not None
    return row.probabilities, row.predicted


def read_calibration(uri: str) -> Calibration:
    """The calibration in the JSON file `uri`, on any pyarrow filesystem; raises `ArtifactError` if it holds none."""
    try:
        return Calibration.model_validate(storage.read_json(uri))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{uri}: no calibration can be read from it ({' '.join(str(error).split())[:200]}); `rbft predictions calibrate` writes one"
        ) from None


def _apply(row: Prediction, calibration: Calibration) -> Prediction:
    labels = calibration.labels
    if set(row.probabilities) != set(labels):
        raise DataError(
            f"prediction {row.id}: has probabilities of {', '.join(row.probabilities)}; the calibration is of {', '.join(labels)}"
        )
    shares = _tempered(_logits(row, labels)[None], calibration.temperature)[0]
    likeliest = int(shares.argmax()) if calibration.threshold is None else int(shares[1] >= calibration.threshold)
    return replace(row, predicted=labels[likeliest], probabilities=dict(zip(labels, shares.tolist(), strict=True)))


def _check_split(predictions: Sequence[Prediction], examples: Sequence[Example]) -> None:
    splits = {example.id: example.split for example in examples}
    for row in predictions:
        if row.id not in splits:
            raise DataError(f"prediction {row.id}: is of no video of the manifest; give the manifest that the predictions were made with")
        if splits[row.id] != SPLIT:
            raise DataError(
                f"prediction {row.id}: is of the split {splits[row.id]}; calibration is fitted on the {SPLIT} split only, so that "
                f"the others stay unseen; predict with evaluation.split={SPLIT}"
            )


def _logits(row: Prediction, labels: Sequence[str]) -> NDArray[np.float64]:
    """Log-likelihoods [K], or the logarithms of the probabilities where a system gives no others; they differ by a constant."""
    if set(row.logprobs) == set(labels):
        return np.array([row.logprobs[label] for label in labels])
    return np.log(np.maximum([row.probabilities[label] for label in labels], np.finfo(np.float64).tiny))


def _tempered(logits_NK: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    from scipy.special import softmax

    return np.asarray(softmax(logits_NK / temperature, axis=1))


def _log_loss(probabilities_NK: NDArray[np.float64], true_N: NDArray[np.int64]) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(true_N, probabilities_NK, labels=list(range(probabilities_NK.shape[1]))))


def _best_threshold(scores_N: NDArray[np.float64], true_N: NDArray[np.int64]) -> float:
    """The middle between the scores around the cut with the best balanced accuracy; of equally good cuts the one nearest to 0.5."""
    from sklearn.metrics import roc_curve

    false_rates, true_rates, cuts = roc_curve(true_N == 1, scores_N, drop_intermediate=False)
    distinct = np.unique(scores_N)
    # roc_curve's cuts are scores, from which on the second label is answered, and infinity first. Other clips lie between scores.
    below = np.searchsorted(distinct, cuts) - 1
    lower = np.where(below >= 0, distinct[np.maximum(below, 0)], 0.0)
    middles = (lower + np.minimum(cuts, 1.0)) / 2
    gains = np.round(true_rates - false_rates, 12)
    best = np.flatnonzero(gains == gains.max())
    return float(middles[best[np.abs(middles[best] - 0.5).argmin()]])
