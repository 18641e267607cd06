"""The difference between two systems on the same clips, with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from rbft.errors import DataError
from rbft.evaluation.metrics import METRICS, NUM_RESAMPLES, Interval, Mode, answer_indices, interval95, score_confusions
from rbft.records import Prediction


class Difference(BaseModel):
    """One metric of a system minus that of its baseline, as a share in -1..1, with the 95 % interval of the paired bootstrap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    ci95: Interval

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero; it may not touch it."""
        low, high = self.ci95
        return low > 0 or high < 0


class Comparison(BaseModel):
    """System minus baseline on the `num_clips` clips that both answered for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    baseline: str
    mode: Mode
    num_clips: int
    differences: dict[str, Difference]
    """Metric of `METRICS` -> difference."""


def compare_predictions(
    system: Sequence[Prediction],
    baseline: Sequence[Prediction],
    labels: Sequence[str],
    *,
    names: tuple[str, str],
    mode: Mode = "likelihood",
    seed: int = 0,
) -> Comparison:
    """`system` minus `baseline`, called `names`, over the same ids in any order.

    Each resample draws whole clips, so both systems are scored on the same draw: what makes a clip hard for both cancels out.

    Raises:
        DataError: the ids or the true labels differ, or a list is not fit for `evaluate_predictions`.
    """
    system, baseline = (sorted(predictions, key=lambda prediction: prediction.id) for predictions in (system, baseline))
    true, ours = answer_indices(system, labels, mode)
    _, theirs = answer_indices(baseline, labels, mode)
    _check_paired(system, baseline, names)

    # Clips with the same truth and the same two answers are alike: resample their counts, then sum them into the two matrices.
    num_labels = len(labels)
    kinds, counts = np.unique(np.stack([true, ours, theirs], axis=1), axis=0, return_counts=True)
    num_clips = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(num_clips, counts / num_clips, size=NUM_RESAMPLES)
    draws = np.concatenate([counts[None], draws])  # the first "draw" is the data itself
    scores = []
    for column in (1, 2):
        cell = kinds[:, 0] * (num_labels + 1) + kinds[:, column]
        membership = np.zeros((len(kinds), num_labels * (num_labels + 1)))
        membership[np.arange(len(kinds)), cell] = 1
        scores.append(score_confusions((draws @ membership).reshape(-1, num_labels, num_labels + 1)))
    deltas = {name: scores[0][name] - scores[1][name] for name in METRICS}
    return Comparison(
        system=names[0],
        baseline=names[1],
        mode=mode,
        num_clips=num_clips,
        differences={name: Difference(value=float(delta[0]), ci95=interval95(delta[1:])) for name, delta in deltas.items()},
    )


def _check_paired(system: Sequence[Prediction], baseline: Sequence[Prediction], names: tuple[str, str]) -> None:
    truths = [{prediction.id: prediction.label for prediction in predictions} for predictions in (system, baseline)]
    alone = sorted(truths[0].keys() ^ truths[1].keys())
    if alone:
        raise DataError(
            f"{names[0]} and {names[1]} are not paired: {alone[0]} (of {len(alone)}) is in one only; predict the same split with both"
        )
    changed = [each for each in truths[0] if truths[0][each] != truths[1][each]]
    if changed:
        raise DataError(f"{names[0]} and {names[1]} disagree about the true label of {changed[0]}; predict with one manifest")
