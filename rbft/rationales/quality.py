"""How good the rationales of a run are, before anything is trained on them: scores a rationale, shares that pass, the worst, as files.

    judge(rationales, task, labels)   -> a verdict each
    quality(verdicts, …)              -> what quality.json says
    write_quality(folder, …)          -> scores.parquet, quality.json and quality.html beside the rationales

They are made of what is on disk and can be made again; no artifact depends on them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rbft import storage
from rbft.evaluation.tables import percent
from rbft.pages import html_environment
from rbft.rationales.gates import GATES, TEXT_GATES, failed, pass_rates, score_corpus, score_text
from rbft.records import Rationale
from rbft.task import Task

NUM_WORST = 5
"""Rationales shown for each gate."""
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Verdict:
    """One rationale and what the gates say of it."""

    rationale: Rationale
    label: str | None
    scores: dict[str, float]
    """Gate -> score; empty for an error row."""
    failed: tuple[str, ...]
    """The gates it does not pass; ("error",) for an error row."""


def judge(
    rationales: Sequence[Rationale], task: Task, labels: Mapping[str, str | None], gates: Collection[str] = tuple(GATES)
) -> list[Verdict]:
    """A verdict of `gates` for each rationale, in their order. `labels` maps video id to label."""
    compared = not set(gates) <= set(TEXT_GATES)
    written = [row for row in rationales if row.text is not None and compared]
    of_corpus = dict(zip(map(id, written), score_corpus([str(row.text) for row in written]), strict=True))
    verdicts = []
    for row in rationales:
        scores = score_text(row, task, labels.get(row.id)) | of_corpus.get(id(row), {})
        verdicts.append(Verdict(row, labels.get(row.id), scores, tuple(failed(scores, gates))))
    return verdicts


def scores_table(verdicts: Iterable[Verdict]) -> pa.Table:
    """A row a rationale: id, sample, a column a gate with its score (null for error rows), and the gates it does not pass."""
    fields = [pa.field("id", pa.string()), pa.field("sample", pa.int32()), *(pa.field(name, pa.float32()) for name in GATES)]
    schema = pa.schema([*fields, pa.field("failed", pa.list_(pa.string()))])
    rows = [{"id": v.rationale.id, "sample": v.rationale.sample, **v.scores, "failed": list(v.failed)} for v in verdicts]
    return pa.Table.from_pylist(rows, schema=schema)


def quality(verdicts: Sequence[Verdict], labels: Sequence[str]) -> dict[str, Any]:
    """Shares that pass each gate, over all and by class, lengths in words, and the ids of the worst; JSON types only."""
    classes = {label: [v for v in verdicts if v.label == label] for label in labels}
    lengths = sorted(len(str(v.rationale.text).split()) for v in verdicts if v.rationale.text is not None)
    return {
        "num_rationales": len(verdicts),
        "num_errors": sum(v.failed == ("error",) for v in verdicts),
        "num_drawn_again": sum("other_draws" in v.rationale.provenance for v in verdicts),
        "num_hinted": sum(bool(v.rationale.provenance.get("label_in_prompt")) for v in verdicts),
        "pass_rates": _rates(verdicts),
        "pass_rates_by_class": {label: _rates(of_class) for label, of_class in classes.items() if of_class},
        "words": {f"{share:g}": lengths[round(share * (len(lengths) - 1))] for share in _QUANTILES} if lengths else {},
        "worst": {name: [v.rationale.id for v in _worst(verdicts, name)] for name in GATES},
    }


def write_quality(folder: str, verdicts: Sequence[Verdict], task: Task, title: str) -> dict[str, Any]:
    """Write scores.parquet, quality.json and quality.html to `folder`; what quality.json says."""
    found = quality(verdicts, task.labels)
    storage.write_table(f"{folder}/scores.parquet", scores_table(verdicts))
    storage.write_bytes(f"{folder}/quality.html", _page(found, verdicts, title).encode())
    storage.write_json(f"{folder}/quality.json", found)  # last: who finds it finds the others
    return found


def _rates(verdicts: Sequence[Verdict]) -> dict[str, float]:
    return pass_rates([verdict.failed for verdict in verdicts], GATES)


def _worst(verdicts: Sequence[Verdict], gate: str) -> list[Verdict]:
    bad = [v for v in verdicts if gate in v.failed]
    return sorted(bad, key=lambda v: (-v.scores[gate], v.rationale.id))[:NUM_WORST]


def _page(found: dict[str, Any], verdicts: Sequence[Verdict], title: str) -> str:
    template = html_environment("rbft.rationales", percent=percent).get_template("quality.html.j2")
    worst = {name: _worst(verdicts, name) for name in GATES}
    return template.render(title=title, found=found, gates=GATES, worst=worst)
