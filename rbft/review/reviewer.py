"""A run's rationales as one reviewer sees them: what was generated, what the gates say, what everybody has changed so far."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from rbft import rows, storage
from rbft.config import RunConfig
from rbft.data.manifest import read_manifest
from rbft.errors import ArtifactError, RequestError
from rbft.layout import RunLayout
from rbft.rationales.gates import GATES, failed, score_text
from rbft.rationales.quality import Verdict, judge
from rbft.rationales.review import Action, Change, apply_history, moment, read_changes, record_changes, review_files
from rbft.rationales.table import rationales_from_table
from rbft.records import Example, Rationale, rationale_schema
from rbft.task import Task

Status = Literal["untouched", "kept", "edited", "excluded"]
STATUSES: tuple[Status, ...] = get_args(Status)
_STATUS: dict[Action, Status] = {"restore": "kept", "edit": "edited", "exclude": "excluded"}


@dataclass
class Item:
    """One rationale under review."""

    example: Example
    generated: Verdict
    """What the model wrote, and what the gates say of it."""
    current: Verdict
    """As all changes so far leave it. An edited text is judged only by the gates that a text decides by itself."""
    history: list[Change] = field(default_factory=list)

    @property
    def text(self) -> str:
        return str(self.current.rationale.text)

    @property
    def status(self) -> Status:
        return _STATUS[self.history[-1].action] if self.history else "untouched"


class Reviewer:
    """One person (`by`) over the current rationales of a run. Threads may call it concurrently."""

    def __init__(self, config: RunConfig, by: str) -> None:
        self.by = by
        self.task: Task = config.task
        self.folder = rationale_folder(config)
        """Of the rationales."""
        found = rationales_from_table(rows.read_finished(self.folder, "rationales", rationale_schema()))
        examples = {example.id: example for example in read_manifest(RunLayout(config.run_dir).manifest)}
        if strangers := [row.id for row in found if row.id not in examples]:
            raise ArtifactError(f"{self.folder}: has a rationale of {strangers[0]}, which the run's manifest has not; run generate again")
        written = [row for row in found if row.text is not None]
        self.num_errors = len(found) - len(written)
        """Rows without a text; there is nothing to review about them."""
        verdicts = _verdicts(self.folder, written, self.task, {id_: example.label for id_, example in examples.items()})
        self._items = {verdict.rationale.id: Item(examples[verdict.rationale.id], verdict, verdict) for verdict in verdicts}
        self._files: set[str] = set()
        self._lock = threading.Lock()
        self.refresh()

    @property
    def items(self) -> list[Item]:
        """All of them, in the manifest's order."""
        return list(self._items.values())

    def item(self, id_: str) -> Item:
        """Raises `RequestError` for an id that has no text here."""
        try:
            return self._items[id_]
        except KeyError:
            raise RequestError(f"there is no rationale of {id_!r} to review; load the page again") from None

    def refresh(self) -> None:
        """Take in what others have changed meanwhile."""
        with self._lock:
            self._refresh()

    def counts(self) -> dict[Status, int]:
        """Status -> number of rationales."""
        counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        for item in self.items:
            counts[item.status] += 1
        return counts

    def find(
        self, status: str | None = None, gate: str | None = None, label: str | None = None, text: str = "", worst_first: bool = True
    ) -> list[Item]:
        """The items that fit, worst first or in the manifest's order. The worst did not pass most gates as generated: the order stays
        as it is while somebody edits.

        `status` is one of `STATUSES` or "reviewed"; `gate` one that is not passed, or "any"; `label` may be "" for unlabelled videos;
        `text` stands in the text or the id, in any case.
        """
        text = text.lower()
        found = [
            item
            for item in self.items
            if (status is None or item.status == status or (status == "reviewed" and item.history))
            and (gate is None or gate in item.current.failed or (gate == "any" and item.current.failed))
            and (label is None or (item.example.label or "") == label)
            and (not text or text in item.text.lower() or text in item.example.id.lower())
        ]
        return sorted(found, key=lambda item: -len(item.generated.failed)) if worst_first else found

    def change(self, id_: str, action: Action, text: str = "", note: str = "") -> Item:
        """The item after the change, which is on disk then. Raises `DataError` for an edit without text."""
        with self._lock:
            self._refresh()
            self._record([self._change(id_, action, text, note)])
            return self.item(id_)

    def change_all(self, wanted: Sequence[tuple[str, Action, str, str]]) -> None:
        """Several changes (id, action, text, note), all of them or none."""
        with self._lock:
            self._record([self._change(*each) for each in wanted])

    def undo(self, id_: str) -> Item:
        """The item as it was before its last change; undone again, the change is back. Nothing happens to an untouched one."""
        with self._lock:
            self._refresh()
            history = self.item(id_).history
            if history:
                before = history[-2] if len(history) > 1 else None
                change = self._change(id_, before.action, before.text, before.note) if before else self._change(id_, "restore", "", "")
                self._record([change])
            return self.item(id_)

    def _change(self, id_: str, action: Action, text: str, note: str) -> Change:
        item = self.item(id_)
        at = moment(after=item.history[-1].at if item.history else None)
        return Change(at, self.by, id_, item.generated.rationale.sample, action, text, note)

    def _record(self, changes: list[Change]) -> None:
        record_changes(self.folder, changes)
        self._refresh()

    def _refresh(self) -> None:
        new = [name for name in review_files(self.folder) if name not in self._files]
        touched = set()
        for change in read_changes(self.folder, new):
            if change.id not in self._items:
                raise ArtifactError(f"{self.folder}/reviews: a change of {change.id!r}, which has no text here; take its file out")
            self._items[change.id].history.append(change)
            touched.add(change.id)
        self._files.update(new)
        for id_ in touched:
            item = self._items[id_]
            item.history.sort()
            rationale = apply_history(item.generated.rationale, item.history, self.task)
            item.current = replace(item.generated, rationale=rationale)
            if item.status == "edited":
                scores = score_text(rationale, self.task, item.example.label)
                item.current = replace(item.current, scores=scores, failed=tuple(failed(scores)))


def rationale_folder(config: RunConfig) -> str:
    """Where the run's current rationales lie; raises `ArtifactError` if none have been asked for."""
    layout = RunLayout(config.run_dir)
    known: dict[str, Any] = storage.read_json(layout.run_json) if storage.exists(layout.run_json) else {}
    folder = known.get("artifacts", {}).get("rationales")
    if folder is None:
        raise ArtifactError(f"{layout.run_json}: names no rationales; `rbft generate` writes them")
    # By its fingerprint: what run.json says is relative to where the job was started.
    return layout.rationales(str(folder).rstrip("/").rpartition("/")[2])


def _verdicts(folder: str, written: list[Rationale], task: Task, labels: Mapping[str, str | None]) -> list[Verdict]:
    """What the gates say of each: what lies beside the rationales, or made anew where that is not of all of them."""
    known: dict[tuple[str, int], dict[str, Any]] = {}
    if storage.exists(uri := f"{folder}/scores.parquet"):
        known = {(row["id"], row["sample"]): row for row in storage.read_table(uri).to_pylist()}
    if not all((row.id, row.sample) in known for row in written):
        return judge(written, task, labels)
    verdicts = []
    for row in written:
        scores = known[row.id, row.sample]
        shown = {name: float(scores[name]) for name in GATES if scores.get(name) is not None}
        verdicts.append(Verdict(row, labels.get(row.id), shown, tuple(scores["failed"])))
    return verdicts
