"""What a finished experiment says: the study of its worlds, the label curve, slots before and after stage 1, and who errs where.

Reads predictions, rationales and the worlds' truth; runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from miniature.slots import SLOT_NAMES, score
from miniature.world import UNSEEN_COMBINATIONS, Slots
from rbft.evaluation.study import Estimate, Study
from rbft.rationales.gates import pass_rates
from rbft.records import Prediction, Rationale
from rbft.task import Task

BASE = "base"
"""The writer of rationales that nothing was trained for."""


@dataclass(frozen=True)
class Truth:
    """What is known about a clip because it was drawn."""

    slots: Slots
    label: str
    severity: float


@dataclass(frozen=True)
class World:
    """One world's results."""

    seed: int
    truth: Mapping[str, Truth]
    """By clip id."""
    predictions: Mapping[str, Sequence[Prediction]]
    """System -> its predictions on the test clips."""
    rationales: Mapping[str, Sequence[Rationale]]
    """Who wrote them -> rationales of test clips; "base", and systems after their stage 1."""


def read_truth(folder: Path) -> dict[str, Truth]:
    """Clip id -> truth, of the world in `folder`."""
    return {
        row["id"]: Truth(Slots(*(row[name] for name in SLOT_NAMES)), row["label"], row["severity"])
        for row in pq.read_table(folder / "truth.parquet").to_pylist()
    }


@dataclass(frozen=True)
class SlotScores:
    """How right and how well-formed one model's rationales are; shares, means over worlds."""

    writer: str
    right: dict[str, float]
    """Slot -> share named rightly, and "overall"."""
    passed: dict[str, float]
    """Gate of `rbft.rationales.gates` -> share that passes it, and "all"."""
    num_clips: int


def slot_scores(worlds: Sequence[World], writer: str, task: Task) -> SlotScores:
    """The scores of `writer`'s rationales over all worlds."""
    rationales = [(row, world.truth[row.id].slots) for world in worlds for row in world.rationales[writer]]
    right = score([row.text or "" for row, _ in rationales], [slots for _, slots in rationales])
    return SlotScores(writer, right, pass_rates([row for row, _ in rationales], task), len(rationales))


@dataclass(frozen=True)
class Disagreement:
    """Clips of one kind on which exactly one of two systems is right."""

    aspect: str
    value: str
    num_clips: int
    only_system: int
    """Clips that the system gets right and the baseline wrong."""
    only_baseline: int


def disagreements(worlds: Sequence[World], system: str, baseline: str) -> list[Disagreement]:
    """Who is right where the two differ, by class, severity and slot, over all worlds' test clips."""
    totals: Counter[tuple[str, str]] = Counter()
    gains: Counter[tuple[str, str]] = Counter()
    losses: Counter[tuple[str, str]] = Counter()
    for world in worlds:
        right = [{row.id: row.predicted == row.label for row in world.predictions[name]} for name in (system, baseline)]
        for id_ in right[0]:
            kinds = list(_kinds(world.truth[id_]))
            totals.update(kinds)
            if right[0][id_] != right[1][id_]:
                (gains if right[0][id_] else losses).update(kinds)
    order = {"class": 0, "severity": 1, "combination": 2} | {name: 3 + i for i, name in enumerate(SLOT_NAMES)}
    return [
        Disagreement(aspect, value, totals[aspect, value], gains[aspect, value], losses[aspect, value])
        for aspect, value in sorted(totals, key=lambda kind: (order[kind[0]], kind[1]))
    ]


def _kinds(truth: Truth) -> Iterable[tuple[str, str]]:
    quarter = min(3, int(4 * truth.severity))
    yield "class", truth.label
    yield "severity", f"{quarter / 4:g} to {(quarter + 1) / 4:g}"
    is_unseen = (truth.slots.subject, truth.slots.action) in UNSEEN_COMBINATIONS
    yield "combination", "held back from the base" if is_unseen else "shown to the base"
    for name in SLOT_NAMES:
        yield name, getattr(truth.slots, name)


def label_curve(study: Study, systems: Sequence[str], counts: Sequence[int], num_all: int, metric: str) -> dict[str, dict[int, Estimate]]:
    """System -> number of labels -> estimate of `metric`; with all labels `rb-ft-unlabelled` is `rb-ft`, as no clip is left unlabelled."""
    curves = {}
    for system in systems:
        curve = {count: study.estimate(f"{system}@{count}", metric) for count in counts}
        whole = "rb-ft" if system == "rb-ft-unlabelled" else system
        curves[system] = curve | {num_all: study.estimate(whole, metric)}
    return curves
