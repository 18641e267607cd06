"""A study: the same systems, each trained and tested several times over (worlds, sites, seeds), and what holds across the repetitions.

Numbers are means over the repetitions. Their intervals come from a paired hierarchical bootstrap: every resample draws repetitions with
replacement, then clips within each one drawn, the same clips for all systems. So they cover which clips were tested *and* which worlds
were met; what a difference shares between two systems cancels out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbft.errors import DataError
from rbft.evaluation.metrics import METRICS, NUM_RESAMPLES, Interval, Mode, answer_indices, interval95, score_confusions
from rbft.records import Prediction


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of shares, with its 95 % interval."""

    value: float
    ci95: Interval
    repetitions: tuple[float, ...]
    """The value in each repetition alone, in order."""

    @property
    def excludes_zero(self) -> bool:
        return self.ci95[0] > 0 or self.ci95[1] < 0


class Study:
    """Metrics of every system over all repetitions. `metrics` are those of `rbft.evaluation.metrics` and "recall <label>"."""

    def __init__(self, systems: Sequence[str], metrics: Sequence[str], values: NDArray[np.float64], draws: NDArray[np.float64]) -> None:
        """`values` [repetitions, systems, metrics]; `draws` [resamples, systems, metrics], each already a mean over repetitions."""
        self.systems, self.metrics = tuple(systems), tuple(metrics)
        self._values, self._draws = values, draws

    @property
    def num_repetitions(self) -> int:
        return len(self._values)

    def estimate(self, system: str, metric: str) -> Estimate:
        """`metric` of `system`."""
        s, m = self.systems.index(system), self.metrics.index(metric)
        return _estimate(self._values[:, s, m], self._draws[:, s, m])

    def difference(self, system: str, baseline: str, metric: str) -> Estimate:
        """`metric` of `system` minus that of `baseline`, paired."""
        s, b, m = self.systems.index(system), self.systems.index(baseline), self.metrics.index(metric)
        return _estimate(self._values[:, s, m] - self._values[:, b, m], self._draws[:, s, m] - self._draws[:, b, m])


def make_study(
    repetitions: Sequence[Mapping[str, Sequence[Prediction]]],
    labels: Sequence[str],
    *,
    mode: Mode = "likelihood",
    seed: int = 0,
    same_clips: bool = False,
) -> Study:
    """The study of `repetitions`, each a map of system -> its predictions on that repetition's test clips, in any order.

    With `same_clips` the repetitions were tested on the same clips (training seeds on one test split), and a resample draws the clips
    once for all of them: drawn for each repetition anew they would seem to be as many more clips.

    Raises:
        DataError: no repetitions, other systems in one than in another, or predictions of a repetition that are not of the same clips; with
            `same_clips` also where repetitions differ in them.
    """
    if not repetitions:
        raise DataError("a study needs at least one repetition")
    systems = list(repetitions[0])
    rng = np.random.default_rng(seed)
    # confusions[repetition]: clips -> one-hot cells of all systems' confusion matrices, [clips, systems * K * (K + 1)]
    cells = [_cells(predictions, systems, labels, mode) for predictions in repetitions]
    values = np.stack([_scores(each.sum(axis=0), len(systems), len(labels)) for each in cells])
    chosen = rng.integers(len(cells), size=(NUM_RESAMPLES, len(cells)))
    draws = np.zeros((NUM_RESAMPLES, *values.shape[1:]))
    shared: NDArray[np.int64] | None = None
    if same_clips:
        _check_same_clips(repetitions)
        shared = _draw_clips(rng, len(cells[0]), NUM_RESAMPLES)
    for place in range(len(cells)):
        for index, each in enumerate(cells):
            rows = np.flatnonzero(chosen[:, place] == index)
            counts = _draw_clips(rng, len(each), len(rows)) if shared is None else shared[rows]
            draws[rows] += _scores(counts @ each, len(systems), len(labels)) / len(cells)
    metrics = [*METRICS, *(f"recall {label}" for label in labels)]
    return Study(systems, metrics, values, draws)


def _draw_clips(rng: np.random.Generator, num_clips: int, num_draws: int) -> NDArray[np.int64]:
    """How often each clip is drawn, [num_draws, num_clips]."""
    return rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), size=num_draws)


def _check_same_clips(repetitions: Sequence[Mapping[str, Sequence[Prediction]]]) -> None:
    tested = [sorted(prediction.id for prediction in next(iter(repetition.values()))) for repetition in repetitions]
    if any(ids != tested[0] for ids in tested):
        raise DataError("the repetitions were tested on different clips; predict the same split with all of them")


def _cells(
    predictions: Mapping[str, Sequence[Prediction]], systems: Sequence[str], labels: Sequence[str], mode: Mode
) -> NDArray[np.float64]:
    if list(predictions) != list(systems):
        raise DataError(f"repetitions differ in their systems: {list(predictions)} and {list(systems)}")
    ids: list[str] | None = None
    parts = []
    for system in systems:
        rows = sorted(predictions[system], key=lambda prediction: prediction.id)
        found = [row.id for row in rows]
        if ids is not None and found != ids:
            raise DataError(f"{system} was tested on other clips than {systems[0]}; predict the same split with both")
        ids = found
        true, answered = answer_indices(rows, labels, mode)
        part = np.zeros((len(rows), len(labels) * (len(labels) + 1)))
        part[np.arange(len(rows)), true * (len(labels) + 1) + answered] = 1
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _scores(confusions: NDArray[np.float64], num_systems: int, num_labels: int) -> NDArray[np.float64]:
    """[..., systems * K * (K + 1)] counts to [..., systems, metrics]."""
    matrices = confusions.reshape(*confusions.shape[:-1], num_systems, num_labels, num_labels + 1)
    scores = score_confusions(matrices)
    support = np.maximum(matrices.sum(axis=-1), 1)
    recalls = [matrices[..., label, label] / support[..., label] for label in range(num_labels)]
    return np.stack([*(scores[name] for name in METRICS), *recalls], axis=-1)


def _estimate(values: NDArray[np.float64], draws: NDArray[np.float64]) -> Estimate:
    return Estimate(float(values.mean()), interval95(draws), tuple(float(value) for value in values))
