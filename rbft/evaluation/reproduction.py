"""The paper's tables with our rows beside the authors': which systems a table asks for, and how it is laid out.

Nothing here compares the two: the authors' numbers are of their data and models. Rows of theirs that contradict themselves say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbft.config import MaskingConfig
from rbft.errors import ModelRefusedError
from rbft.evaluation.figure2 import whose_boxes
from rbft.evaluation.metrics import Metrics, answered_modes, metrics_from_confusion
from rbft.evaluation.paper import SMARTHOME_LABELS, Flag, PaperRow, paper_table
from rbft.evaluation.tables import aligned, interval, percent, system_title
from rbft.records import Prediction
from rbft.systems import MASK_KINDS, behind_masks, split_masks

BACKBONES = {"qwen2_vl": "Qwen2-VL-7B", "qwen2_5_vl": "Qwen2.5-VL-7B"}
"""`model_type` of a model folder -> the paper's model whose rows stand beside its own."""


@dataclass(frozen=True)
class TableSpec:
    """What one of the paper's tables asks for."""

    number: int
    title: str
    methods: Mapping[str, str]
    """System of ours -> the method of the paper's row beside it; "" where the paper has none."""

    @property
    def systems(self) -> tuple[str, ...]:
        """Those that are trained, without masks."""
        return tuple(dict.fromkeys(split_masks(name)[0] for name in self.methods))

    @property
    def masked(self) -> tuple[str, ...]:
        """Those that see videos behind masks."""
        return tuple(name for name in self.methods if split_masks(name)[1] is not None)

    @property
    def compares_methods(self) -> bool:
        """Whether it is one of the paper's main tables: API models and other baselines have rows there, and failures are looked into."""
        return self.methods is _COMPARISON


_OVERALL = ("accuracy", "balanced accuracy", "macro-F1")
"""Columns that come first, before those of single labels."""

_COMPARISON = {"zero-shot": "Zero-shot", "direct-sft-1": "Direct-SFT", "direct-sft-2": "", "rb-ft": "RB-FT"}


def _masked(methods: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for system, method in methods.items():
        found |= {behind_masks(system, kind): f"{method}, {kind} masks" for kind in MASK_KINDS}
        found[system] = f"{method}, original frames"
    return found


TABLES = {
    spec.number: spec
    for spec in (
        TableSpec(1, "RB-FT against zero-shot and Direct-SFT", _COMPARISON),
        TableSpec(2, "RB-FT on three classes", _COMPARISON),
        TableSpec(3, "what stage 1 is taught to answer", {"rb-ft-label-first": "P+C+R", "rb-ft-label-last": "P+R+C", "rb-ft": "P+R"}),
        TableSpec(4, "share of self-generated rationales", {"rb-ft-mix-20": "20 %", "rb-ft-mix-60": "60 %", "rb-ft": "100 %"}),
        TableSpec(5, "frames behind masks", _masked({"direct-sft-1": "Direct-SFT", "rb-ft": "RB-FT"})),
    )
}


@dataclass(frozen=True)
class TableRow:
    """One line: ours, or the authors'."""

    name: str
    is_paper: bool
    cells: tuple[str, ...]
    """As many as the table has columns; "" where the paper prints nothing and nothing can be rebuilt."""
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table as it is shown."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


def make_table(
    spec: TableSpec,
    dataset: str,
    labels: Sequence[str],
    results: Mapping[str, Mapping[str, Metrics]],
    others: Mapping[str, Metrics],
    *,
    paper_models: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
) -> PaperTable:
    """The table of `spec` on the data called `dataset`.

    `results`: backbone -> system -> metrics; `others`: systems that are no backbone's, such as API models, by name. `paper_models`:
    backbone -> the paper's model whose rows stand beside its own, where that has another name; of several with the same model beside the
    first's. The paper's rows of systems that are not here stand below. `notes`: system of `others` -> what its row says; `remarks` stand
    below the table.
    """
    theirs = {(row.model, row.method): row for row in paper_table(spec.number)}
    rows: list[TableRow] = []
    for name, metrics in others.items():
        rows.append(_ours(system_title(name), metrics, labels, (notes or {}).get(name, "")))
        rows += [_theirs(row, labels) for key, row in _taken(theirs, name)]
    for backbone, by_system in results.items():
        for system, method in spec.methods.items():
            if system not in by_system:
                continue
            prefix = f"{backbone}: " if len(results) > 1 else ""
            rows.append(_ours(prefix + system_title(system), by_system[system], labels))
            if (row := theirs.pop(((paper_models or {}).get(backbone, backbone), method), None)) is not None:
                rows.append(_theirs(row, labels))
    rows += [_theirs(row, labels) for row in theirs.values()]
    ours = [*others.values(), *(metrics for by_system in results.values() for metrics in by_system.values())]
    columns = (*_OVERALL, *(f"F1 {label}" for label in labels), *(f"recall {label}" for label in labels))
    return PaperTable(
        spec.number, f"Table {spec.number}: {spec.title} ({dataset})", columns, tuple(rows), (*_notes(labels, ours), *remarks)
    )


def _taken(theirs: dict[tuple[str, str], PaperRow], name: str) -> list[tuple[tuple[str, str], PaperRow]]:
    found = [(key, row) for key, row in theirs.items() if key[0].lower() == name.lower()]
    for key, _ in found:
        del theirs[key]
    return found


def answers_note(predictions: Sequence[Prediction]) -> str:
    """What a row says of how its answers came about: where they are read from text, and how many are refusals."""
    by_text = ["by generated text"] if answered_modes(predictions)[0] == "generate" else []
    num_refusals = sum(row.error_code == ModelRefusedError.code for row in predictions)
    return "; ".join([*by_text, *([f"{num_refusals} refused"] if num_refusals else [])])


def masks_note(of_objects: Sequence[Prediction], at_random: Sequence[Prediction], masking: MaskingConfig) -> str:
    """How many videos are masked and how much of them, and what decided it; from the same system's predictions behind either mask."""
    shares = [[row.masked_share for row in rows if row.masked_share] for rows in (of_objects, at_random)]
    area, random_area = (percent(sum(found) / len(found)) if found else percent(0) for found in shares)
    num_masked, num_videos = len(shares[0]), sum(row.masked_share is not None for row in of_objects)
    rest = "" if num_masked == num_videos else "; in the others nothing was found, and they are seen as they are"
    fill = {"mean": "the clip's mean colour", "black": "black", "gray": "gray"}[masking.fill]
    return (
        f"{num_masked} of {num_videos} videos are masked, on average {area} of their area over objects and {random_area} at random "
        f"places{rest}. {whose_boxes(masking)}. Filled with {fill}; places are drawn with seed {masking.seed}."
    )


def _ours(name: str, metrics: Metrics, labels: Sequence[str], note: str = "") -> TableRow:
    scores = [(getattr(metrics, metric), metrics.ci95[metric]) for metric in ("accuracy", "balanced_accuracy", "macro_f1")]
    cells = [f"{percent(value)} {interval(ends)}" for value, ends in scores]
    of_labels = [(score, metrics.per_class[label]) for score in ("f1", "recall") for label in labels]
    cells += [f"{percent(getattr(scores, score))} {interval(scores.ci95[score])}" for score, scores in of_labels]
    answered = "" if metrics.coverage == 1 else f"{percent(metrics.coverage)} answered, the rest counts as wrong"
    return TableRow(name, False, tuple(cells), "; ".join(filter(None, (note, answered))))


def _theirs(row: PaperRow, labels: Sequence[str]) -> TableRow:
    """What is printed, and where one matrix fits, what follows from it."""
    decoded = metrics_from_confusion(row.confusion, SMARTHOME_LABELS) if row.confusion else None
    rebuilt = ["", ""] if decoded is None else [percent(decoded.balanced_accuracy), percent(decoded.macro_f1)]
    cells = [f"{row.accuracy:.2f} %", *rebuilt, *(f"{row.f1[label]:.2f} %" if label in row.f1 else "" for label in labels)]
    cells += [percent(decoded.per_class[label].recall) if decoded and label in decoded.per_class else "" for label in labels]
    return TableRow(f"paper: {row.name}", True, tuple(cells), "" if row.flag is Flag.DECODED else row.flag.value)


def _notes(labels: Sequence[str], ours: Sequence[Metrics]) -> tuple[str, ...]:
    notes = [
        "Rows named “paper” are the authors' numbers, of their data and models, for orientation. Balanced accuracy, macro-F1 and recall "
        "follow from the one confusion matrix that fits a row, where one does.",
        "In brackets 95 % intervals of a bootstrap over test videos.",
    ]
    if not set(labels) & set(SMARTHOME_LABELS):
        notes.append("The labels here are others than the paper's, so that its F1 scores have no column.")
    if all(metrics.ci95["balanced_accuracy"][0] <= 1 / len(labels) for metrics in ours):
        notes.append("None of our systems has learned this task: none is above one answer for all, so that no row says which is better.")
    return tuple(notes)


def table_text(table: PaperTable) -> str:
    """For a terminal: intervals of the overall scores only, as a line has an end."""
    narrow = [(*row.cells[: len(_OVERALL)], *(cell.partition(" [")[0] for cell in row.cells[len(_OVERALL) :])) for row in table.rows]
    lines = [["", *table.columns, ""], *([row.name, *cells, row.note] for row, cells in zip(table.rows, narrow, strict=True))]
    return "\n".join([table.title, "", *aligned(lines), "", *table.notes])


def table_json(table: PaperTable) -> dict[str, Any]:
    """For `--json` and the run's folder."""
    return {
        "table": table.number,
        "title": table.title,
        "columns": list(table.columns),
        "rows": [{"name": row.name, "paper": row.is_paper, "cells": list(row.cells), "note": row.note} for row in table.rows],
        "notes": list(table.notes),
    }
