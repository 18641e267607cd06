"""What people change about rationales before stage 1 learns them, beside what was generated, which stays as it is.

    record_changes(folder, changes)            -> a file of its own in <folder>/reviews/
    read_changes(folder)                       -> all of them, in order of time
    apply_changes(rationales, changes, task)   -> the rationales as reviewed, and the ids that stage 1 leaves out

The latest change of a rationale says what becomes of it. Every call writes a file of a new name, whole or not at all, so reviewers who
work at the same time, on a disk or an object store, lose nothing of each other's.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from rbft import artifacts, storage
from rbft.errors import ArtifactError, DataError
from rbft.records import Rationale
from rbft.task import Task

Action = Literal["exclude", "restore", "edit"]

FOLDER = "reviews"
_SCHEMA_VERSION = 1
_READERS = 16
"""Small files of an object store that are fetched at a time."""


@dataclass(frozen=True, order=True)
class Change:
    """One decision of one person about one rationale. Changes sort by time, and those of one microsecond by what they say.

    Raises `DataError` if it is not one.
    """

    at: str
    """UTC, as `moment` writes it."""
    by: str
    """Who decided."""
    id: str
    sample: int
    action: Action
    """"exclude": stage 1 leaves it out. "edit": stage 1 learns `text` in its place. "restore": as it was generated, which is also how it
    is written down that somebody looked at a rationale and kept it."""
    text: str = ""
    """The new text of an edit."""
    note: str = ""
    """Why, in the reviewer's words."""

    def __post_init__(self) -> None:
        what = f"a change of rationale {self.id!r}"
        if self.action not in get_args(Action):
            raise DataError(f"{what} has the action {self.action!r}; it must be one of {', '.join(get_args(Action))}")
        if (self.action == "edit") != bool(self.text.strip()):
            raise DataError(
                f"{what} to an empty text; exclude it instead" if self.action == "edit" else f"{what} has a text and is no edit"
            )
        if not self.by.strip():
            raise DataError(f"{what} does not say by whom; give a name")
        if not _MOMENT.fullmatch(self.at):
            raise DataError(f"{what} is of {self.at!r}, which is no time as 2026-01-31T23:59:59.000000+00:00")


_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
"""Of one form, so that texts sort as times do."""


def moment(after: str | None = None) -> str:
    """The time now, in UTC; a microsecond past `after` where that is later: a reviewer's clock may run behind another's whose change
    she undoes."""
    now = datetime.datetime.now(datetime.UTC)
    if after is not None:
        now = max(now, datetime.datetime.fromisoformat(after) + datetime.timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")


def record_changes(folder: str, changes: Sequence[Change]) -> None:
    """Write `changes` beside the rationales in `folder`: all of them or none.

    Raises `DataError` if one is of a rationale that the folder does not have, or that is an error row.
    """
    if not changes:
        return
    _check_known(folder, changes)
    name = re.sub(r"[^0-9T]", "", changes[0].at.partition("+")[0])
    content = {"schema_version": _SCHEMA_VERSION, "changes": [asdict(change) for change in changes]}
    storage.write_json(f"{folder}/{FOLDER}/{name}-{uuid.uuid4().hex}.json", content)


def _check_known(folder: str, changes: Sequence[Change]) -> None:
    # Of a million rationales only the rows in question become Python objects.
    files = [name for name in artifacts.read_marker(folder)["parts"] if name.startswith("rationales")]
    tables = [storage.read_table(f"{folder}/{name}", columns=["id", "sample", "error_code"]) for name in files]
    found = pa.concat_tables(tables).filter(pc.field("id").isin([change.id for change in changes])).to_pylist()
    written = {(row["id"], row["sample"]) for row in found if row["error_code"] is None}
    for change in changes:
        if (change.id, change.sample) not in written:
            raise _unknown(change, folder)


def _unknown(change: Change, where: str) -> DataError:
    return DataError(
        f"{where}: has no text for {change.id!r} (sample {change.sample}), so {change.by} cannot {change.action} it; check the id"
    )


def review_files(folder: str) -> list[str]:
    """The names of the files of changes beside the rationales in `folder`, sorted; those of a folder never change, there are only more."""
    names = (str(info.path).rpartition("/")[2] for info in storage.list_files(f"{folder}/{FOLDER}"))
    return sorted(name for name in names if name.endswith(".json"))


def read_changes(folder: str, files: Sequence[str] | None = None) -> list[Change]:
    """The changes that were recorded in `folder`, in order of time; only those in `files` if given.

    Raises `ArtifactError` naming a file that is none of ours.
    """
    uris = [f"{folder}/{FOLDER}/{name}" for name in (review_files(folder) if files is None else files)]
    with ThreadPoolExecutor(_READERS) as threads:
        return sorted(change for changes in threads.map(_read_file, uris) for change in changes)


def _read_file(uri: str) -> list[Change]:
    content = storage.read_json(uri)
    try:
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema version {content['schema_version']}, this code reads {_SCHEMA_VERSION}")
        return [Change(**change) for change in content["changes"]]
    except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:
        raise ArtifactError(f"{storage.shown(uri)}: holds no changes of a review ({error}); take the file out of {FOLDER}/") from None


def apply_changes(rationales: Sequence[Rationale], changes: Iterable[Change], task: Task) -> tuple[list[Rationale], set[str]]:
    """The rationales as `changes` leave them, in their order, and the ids of those that stage 1 must leave out.

    Raises `DataError` if a change is of a rationale that is not among them, or is an error row.
    """
    histories: dict[tuple[str, int], list[Change]] = {}
    for change in sorted(changes):
        histories.setdefault((change.id, change.sample), []).append(change)
    reviewed = [apply_history(row, histories.pop((row.id, row.sample), []), task) for row in rationales]
    if histories:
        raise _unknown(next(iter(histories.values()))[-1], "the rationales under review")
    return reviewed, {row.id for row in reviewed if is_excluded(row)}


def apply_history(rationale: Rationale, history: Sequence[Change], task: Task) -> Rationale:
    """`rationale` as its own changes, in order of time, leave it: what the last of them says.

    What is changed has `provenance["review"]`: who did what and when, with the SHA-256 of the text before; what is restored is as it was.
    """
    if history and rationale.text is None:
        raise _unknown(history[-1], "the rationales under review")
    if not history or history[-1].action == "restore":
        return rationale
    generated = str(rationale.text)
    entries: list[dict[str, Any]] = []
    text = generated
    for change in history:
        entry = {"action": change.action, "by": change.by, "at": change.at, "note": change.note}
        entries.append(entry | {"sha256_before": hashlib.sha256(text.encode()).hexdigest()})
        text = change.text if change.action == "edit" else generated
    reviewed = replace(rationale, provenance=rationale.provenance | {"review": entries})
    if history[-1].action == "exclude":
        return reviewed
    # A person ends a text where it ends; nobody counted its tokens.
    return replace(reviewed, text=text, sections=task.parse_sections(text), finish_reason="stop", num_tokens=None)


def is_excluded(reviewed: Rationale) -> bool:
    """Whether a review has `reviewed` left out of stage 1."""
    entries: list[dict[str, Any]] = reviewed.provenance.get("review", [])
    return bool(entries) and entries[-1]["action"] == "exclude"
