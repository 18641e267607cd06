"""The difference between two systems on the same clips: paired bootstrap intervals, tests, and the clips they differ on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from rbft.errors import DataError
from rbft.evaluation.metrics import (
    METRICS,
    NUM_RESAMPLES,
    Interval,
    Mode,
    answer,
    answer_indices,
    interval95,
    reading_mode,
    score_confusions,
)
from rbft.evaluation.probabilities import WITH_INTERVALS, probability_matrix, resample_probabilities
from rbft.evaluation.significance import mcnemar_exact, paired_confusions, permutation_p_values
from rbft.records import Prediction


class Difference(BaseModel):
    """One metric of a system minus that of its baseline, in the metric's unit, with the 95 % interval of the paired bootstrap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    ci95: Interval
    permutation_p: float | None = None
    """Two-sided p of the paired permutation test; None for metrics of probabilities, which it is not made for."""

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
    modes: tuple[Mode, Mode]
    """How the answers of each were read."""
    num_clips: int
    differences: dict[str, Difference]
    """Metric of `METRICS` -> difference."""
    mcnemar_p: float
    """Two-sided p of McNemar's exact test of the two accuracies."""
    only_system: tuple[str, ...]
    """Ids of the clips that the system alone got right, sorted."""
    only_baseline: tuple[str, ...]
    """Ids of the clips that the baseline alone got right, sorted."""
    both_wrong: tuple[str, ...]
    """Ids of the clips on which they gave different answers that are both wrong, sorted."""
    probability_differences: dict[str, Difference] = {}
    """Metric of `WITH_INTERVALS` of the probabilities -> difference, on the clips for which both have some; empty where there are none."""


def compare_predictions(
    system: Sequence[Prediction],
    baseline: Sequence[Prediction],
    labels: Sequence[str],
    *,
    names: tuple[str, str],
    mode: Mode | None = None,
    seed: int = 0,
) -> Comparison:
    """`system` minus `baseline`, called `names`, over the same ids in any order; both read in `mode`, or each in its own way, by label
    likelihood where it has some.

    Each resample draws whole clips, so both systems are scored on the same draw: what makes a clip hard for both cancels out.

    Raises:
        DataError: the ids or the true labels differ, a system has no answers in `mode`, or a list is not fit for `evaluate_predictions`.
    """
    modes = (reading_mode(system, mode, names[0]), reading_mode(baseline, mode, names[1]))
    system, baseline = (sorted(predictions, key=lambda prediction: prediction.id) for predictions in (system, baseline))
    true, ours = answer_indices(system, labels, modes[0])
    _, theirs = answer_indices(baseline, labels, modes[1])
    _check_paired(system, baseline, names)

    # Clips with the same truth and the same two answers are alike: resample their counts, then sum them into the two matrices.
    num_labels = len(labels)
    kinds, counts = np.unique(np.stack([true, ours, theirs], axis=1), axis=0, return_counts=True)
    num_clips = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(num_clips, counts / num_clips, size=NUM_RESAMPLES)
    draws = np.concatenate([counts[None], draws])  # the first "draw" is the data itself
    scores = [score_confusions(paired_confusions(kinds, draws, num_labels, column)) for column in (1, 2)]
    deltas = {name: scores[0][name] - scores[1][name] for name in METRICS}
    p_values = permutation_p_values(kinds, counts, num_labels, seed=seed)
    pairs = [
        (one, answer(one, modes[0]) == one.label, answer(one, modes[0]), answer(other, modes[1]))
        for one, other in zip(system, baseline, strict=True)
    ]
    only_system = tuple(one.id for one, is_right, mine, other in pairs if is_right and mine != other)
    only_baseline = tuple(one.id for one, _, mine, other in pairs if mine != other == one.label)
    return Comparison(
        system=names[0],
        baseline=names[1],
        modes=modes,
        num_clips=num_clips,
        differences={
            name: Difference(value=float(delta[0]), ci95=interval95(delta[1:]), permutation_p=p_values[name])
            for name, delta in deltas.items()
        },
        mcnemar_p=mcnemar_exact(len(only_system), len(only_baseline)),
        only_system=only_system,
        only_baseline=only_baseline,
        both_wrong=tuple(one.id for one, is_right, mine, other in pairs if mine != other and not is_right and other != one.label),
        probability_differences=_probability_differences(system, baseline, labels, seed),
    )


def _probability_differences(
    system: Sequence[Prediction], baseline: Sequence[Prediction], labels: Sequence[str], seed: int
) -> dict[str, Difference]:
    both = {row.id for row in system if row.probabilities} & {row.id for row in baseline if row.probabilities}
    if not both:
        return {}
    first, second = (
        resample_probabilities(*probability_matrix([row for row in rows if row.id in both], labels)[:2], seed)
        for rows in (system, baseline)
    )
    deltas = {name: first[name] - second[name] for name in WITH_INTERVALS}
    defined = {name: delta[1:][np.isfinite(delta[1:])] for name, delta in deltas.items()}
    return {
        name: Difference(value=float(deltas[name][0]), ci95=interval95(draws))
        for name, draws in defined.items()
        if len(draws) and np.isfinite(deltas[name][0])
    }


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
