"""What a finished experiment says: the study of its worlds, the label curve, slots before and after stage 1, and who errs where.

Reads predictions, rationales and the worlds' truth; runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq

from miniature.slots import SLOT_NAMES, parse
from miniature.world import UNSEEN_COMBINATIONS, Slots
from rbft.evaluation.study import Estimate, Study
from rbft.rationales.gates import TEXT_GATES, check_rationale, pass_rates
from rbft.records import Prediction, Rationale
from rbft.task import Task

BASE = "base"
"""Who wrote rationales: the base model."""
TAUGHT = "taught"
"""The base model as well, but of training clips: what stage 1 of RB-FT learns from."""


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
    """Who wrote them -> rationales: `BASE` and systems after their stage 1 of the same test clips, `TAUGHT` of training clips."""


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
    by_severity: dict[str, float]
    """Quarter of severity -> share of all slots named rightly."""
    usual_error: dict[str, tuple[str, float]]
    """Slot -> what is most often said there when it is wrong, and its share of the wrong ones; chance would make it small."""
    mended: float
    """Share of slots that are right here and wrong in `BASE`'s rationale of the same clip."""
    broken: float
    """The reverse."""
    passed: dict[str, float]
    """Gate of `rbft.rationales.gates` -> share that passes it, and "all"."""
    num_clips: int


def slot_scores(worlds: Sequence[World], writer: str, task: Task) -> SlotScores:
    """The scores of `writer`'s rationales over all worlds."""
    right: dict[str, list[bool]] = {name: [] for name in SLOT_NAMES}
    by_severity: dict[str, list[bool]] = {}
    said_wrongly: dict[str, Counter[str]] = {name: Counter() for name in SLOT_NAMES}
    changes: Counter[tuple[bool, bool]] = Counter()
    for world in worlds:
        of_base = {row.id: parse(row.text or "") for row in world.rationales[BASE]}
        for row in world.rationales[writer]:
            truth, said = world.truth[row.id], parse(row.text or "")
            for name in SLOT_NAMES:
                true_value = getattr(truth.slots, name)
                is_right = said[name] == true_value
                right[name].append(is_right)
                by_severity.setdefault(severity_quarter(truth), []).append(is_right)
                if not is_right:
                    said_wrongly[name][said[name] or "nothing"] += 1
                if row.id in of_base:
                    changes[of_base[row.id][name] == true_value, is_right] += 1
    shares = {name: fmean(found) for name, found in right.items()}
    rows = [row for world in worlds for row in world.rationales[writer]]
    return SlotScores(
        writer,
        shares | {"overall": fmean(shares.values())},
        {quarter: fmean(found) for quarter, found in sorted(by_severity.items())},
        {name: (words.most_common(1)[0][0], words.most_common(1)[0][1] / words.total()) for name, words in said_wrongly.items() if words},
        changes[False, True] / max(1, changes.total()),
        changes[True, False] / max(1, changes.total()),
        pass_rates([check_rationale(row, task) for row in rows], TEXT_GATES),
        len(rows),
    )


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


def severity_quarter(truth: Truth) -> str:
    """Which quarter of the severities a clip is from, e.g. "0.25 to 0.5"."""
    quarter = min(3, int(4 * truth.severity))
    return f"{quarter / 4:g} to {(quarter + 1) / 4:g}"


def _kinds(truth: Truth) -> Iterable[tuple[str, str]]:
    yield "class", truth.label
    yield "severity", severity_quarter(truth)
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
