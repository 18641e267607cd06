"""Metrics of one system, from predictions or straight from a confusion matrix.

Everything is a function of the confusion matrix, intervals too: drawing n clips with replacement is drawing the matrix's cells from a
multinomial, so the bootstrap needs the counts alone and does not depend on the order of the clips.

Covered: accuracy, per-class precision, recall and F1, macro-F1, balanced accuracy, coverage, percentile intervals, the majority baseline.
Not covered: what the probabilities are worth (`rbft.evaluation.probabilities`), and the variance of training: an interval says what other
test clips might have given, not other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from rbft.errors import DataError
from rbft.records import Prediction

Mode = Literal["likelihood", "generate"]
MODE_TITLES: dict[Mode, str] = {"likelihood": "label likelihood", "generate": "generated text"}
"""How answers are read, in print."""
Interval = tuple[float, float]
"""Low and high end of a 95 % interval."""

METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
"""The metrics that get intervals."""
NUM_RESAMPLES = 2000
"""Of the bootstrap. The Monte-Carlo error of a 2.5 % quantile is then about 0.3 percentage points of its rank."""

_CELLS_AT_ONCE = 4_000_000
"""Of a batch of resampled matrices, 8 bytes each: those of 300 labels have 90,000 cells."""


class ClassMetrics(BaseModel):
    """One label's metrics, shares in 0..1; a ratio of nothing to nothing is 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: float
    recall: float
    f1: float
    support: int
    """Clips whose true label this is."""
    ci95: dict[str, Interval]
    """"precision", "recall" and "f1" -> percentile interval of the bootstrap over clips."""


class Metrics(BaseModel):
    """What a system got right on `num_clips` clips; shares in 0..1. `model_dump_json` writes it, `model_validate_json` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true labels, columns predicted labels in the same order and one more: no answer (unparseable text or an error row)."""
    num_clips: int
    accuracy: float
    """Clips without an answer count as wrong here and in every other metric (readings, 13)."""
    balanced_accuracy: float
    """Mean recall of the labels that occur in the test set."""
    macro_f1: float
    """Mean F1 of the labels that occur, as truth or as answer."""
    per_class: dict[str, ClassMetrics]
    coverage: float
    """Share of clips with an answer."""
    ci95: dict[str, Interval]
    """Metric of `METRICS` -> percentile interval of the bootstrap over clips."""
    majority_label: str
    majority_accuracy: float
    """Of always answering `majority_label`, the most frequent true label of these very clips."""


def score_confusions(confusions: NDArray[np.floating] | NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
    """Metric of `METRICS` -> its values [...] for confusion matrices [..., K, K + 1], rows true, last column no answer."""
    confusions = np.asarray(confusions, dtype=np.float64)
    num_labels = confusions.shape[-2]
    support, predicted = confusions.sum(axis=-1), confusions[..., :num_labels].sum(axis=-2)
    correct = np.diagonal(confusions[..., :num_labels], axis1=-2, axis2=-1)
    of_class = _class_scores(confusions)
    return {
        "accuracy": _ratio(correct.sum(axis=-1), support.sum(axis=-1)),
        "balanced_accuracy": _ratio(of_class["recall"].sum(axis=-1), (support > 0).sum(axis=-1)),
        "macro_f1": _ratio(of_class["f1"].sum(axis=-1), (support + predicted > 0).sum(axis=-1)),
    }


def _class_scores(confusions: NDArray[np.floating] | NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
    """ "precision", "recall" and "f1" -> values [..., K] for confusion matrices [..., K, K + 1]."""
    num_labels = confusions.shape[-2]
    correct = np.diagonal(confusions[..., :num_labels], axis1=-2, axis2=-1)
    support, predicted = confusions.sum(axis=-1), confusions[..., :num_labels].sum(axis=-2)
    return {"precision": _ratio(correct, predicted), "recall": _ratio(correct, support), "f1": _ratio(2 * correct, support + predicted)}


def metrics_from_confusion(confusion: ArrayLike, labels: Sequence[str], *, seed: int = 0) -> Metrics:
    """The metrics of a confusion matrix of counts: K x K, or K x (K + 1) with a last column for no answer; rows true, columns predicted.

    Raises:
        DataError: the matrix does not fit `labels`, holds a negative number, or counts no clip.
    """
    counts = _checked(confusion, labels)
    num_clips = int(counts.sum())
    support, of_class = counts.sum(axis=1), _class_scores(counts)
    scores = {name: float(value) for name, value in score_confusions(counts).items()}
    resampled, by_class = _resampled(counts, seed)
    majority = int(support.argmax())
    return Metrics(
        labels=tuple(labels),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
        num_clips=num_clips,
        accuracy=scores["accuracy"],
        balanced_accuracy=scores["balanced_accuracy"],
        macro_f1=scores["macro_f1"],
        per_class={
            label: ClassMetrics(
                **{name: float(values[i]) for name, values in of_class.items()},
                support=int(support[i]),
                ci95={name: interval95(values[:, i]) for name, values in by_class.items()},
            )
            for i, label in enumerate(labels)
        },
        coverage=float(counts[:, : len(labels)].sum() / num_clips),
        ci95={name: interval95(values) for name, values in resampled.items()},
        majority_label=labels[majority],
        majority_accuracy=float(support[majority] / num_clips),
    )


def _resampled(counts: NDArray[np.int64], seed: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """What `score_confusions` [NUM_RESAMPLES] and `_class_scores` [NUM_RESAMPLES, K] make of resamples of `counts` [K, K + 1]."""
    rng, num_clips = np.random.default_rng(seed), int(counts.sum())
    at_once = max(1, _CELLS_AT_ONCE // counts.size)
    scores, by_class = [], []
    for start in range(0, NUM_RESAMPLES, at_once):
        draws = rng.multinomial(num_clips, counts.ravel() / num_clips, size=min(at_once, NUM_RESAMPLES - start))
        draws = draws.reshape(-1, *counts.shape)
        scores.append(score_confusions(draws))
        by_class.append(_class_scores(draws))
    return _joined(scores), _joined(by_class)


def _joined(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate_predictions(predictions: Sequence[Prediction], labels: Sequence[str], mode: Mode = "likelihood", *, seed: int = 0) -> Metrics:
    """The metrics of one system's predictions, by label likelihood or by the label its greedy text names (readings, 12).

    Raises:
        DataError: no predictions, an id twice, a true label that is missing, or a label that is not in `labels`.
    """
    true, answered = answer_indices(predictions, labels, mode)
    confusion = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    np.add.at(confusion, (true, answered), 1)
    return metrics_from_confusion(confusion, labels, seed=seed)


def answered_modes(predictions: Sequence[Prediction]) -> tuple[Mode, ...]:
    """How the answers of one system can be read: an API model that tells no probabilities has text only."""
    has_likelihoods = any(prediction.predicted is not None for prediction in predictions)
    has_text = any(prediction.generated is not None for prediction in predictions)
    if has_text and not has_likelihoods:
        return ("generate",)
    return ("likelihood", "generate") if has_text else ("likelihood",)


def reading_mode(predictions: Sequence[Prediction], mode: Mode | None, name: str) -> Mode:
    """`mode`, or where that is None how the answers of the system called `name` are read first.

    Raises:
        DataError: there are no answers in `mode`, so that every video would count as wrong.
    """
    modes = answered_modes(predictions)
    if mode is not None and mode not in modes:
        raise DataError(f"{name}: has no answers by {MODE_TITLES[mode]}, only by {MODE_TITLES[modes[0]]}; compare it by that")
    return mode or modes[0]


def answer(prediction: Prediction, mode: Mode) -> str | None:
    """The label that a prediction answers in `mode`; None where it has none."""
    return prediction.predicted if mode == "likelihood" else prediction.generated_label


def confidence(prediction: Prediction, mode: Mode = "likelihood") -> float | None:
    """The probability of the answer in `mode`; None where there is no answer or no probability of it."""
    answered = answer(prediction, mode)
    return None if answered is None else prediction.probabilities.get(answered)


def answer_indices(predictions: Sequence[Prediction], labels: Sequence[str], mode: Mode) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and answered label of each prediction as indices into `labels`, [num_clips] each; an answer of len(labels) is no answer.

    Raises:
        DataError: as `evaluate_predictions`.
    """
    if not predictions:
        raise DataError("no predictions to evaluate; check that the split has videos")
    _refuse_duplicates([prediction.id for prediction in predictions])
    index: Mapping[str | None, int] = {label: i for i, label in enumerate(labels)}
    true = np.empty(len(predictions), dtype=np.int64)
    answered = np.empty(len(predictions), dtype=np.int64)
    for row, prediction in enumerate(predictions):
        given = answer(prediction, mode)
        for value in (prediction.label, given):
            if value is not None and value not in index:
                raise DataError(f"prediction {prediction.id}: label {value!r} is not of the task; its labels are {', '.join(labels)}")
        if prediction.label is None:
            raise DataError(f"prediction {prediction.id}: has no true label; evaluate labelled videos only")
        true[row] = index[prediction.label]
        answered[row] = len(labels) if given is None else index[given]
    return true, answered


def interval95(values: NDArray[np.float64]) -> Interval:
    """The 2.5 and 97.5 % quantiles of bootstrapped `values`."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _checked(confusion: ArrayLike, labels: Sequence[str]) -> NDArray[np.int64]:
    counts = np.asarray(confusion)
    num_labels = len(labels)
    if counts.shape == (num_labels, num_labels):
        counts = np.concatenate([counts, np.zeros((num_labels, 1), dtype=counts.dtype)], axis=1)
    if counts.shape != (num_labels, num_labels + 1):
        raise DataError(f"a confusion matrix of shape {counts.shape} does not fit {num_labels} labels; give K x K or K x (K + 1) counts")
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0 or counts.sum() == 0:
        raise DataError("a confusion matrix must hold whole numbers, none negative and not all zero")
    return counts.astype(np.int64)


def _refuse_duplicates(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for each in ids:
        if each in seen:
            raise DataError(f"prediction {each}: is there twice; every video counts once, remove the second row")
        seen.add(each)


def _ratio(part: NDArray[np.floating] | NDArray[np.integer], whole: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    """part / whole, and 0 where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
