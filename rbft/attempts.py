"""Who was in flight when something died: notes that outlive the process which wrote them.

An actor writes down a block's videos before they enter its engine and strikes the note out when their rows are written. After an engine's
death nobody knows which of the videos in flight did it. So all of them are *suspects*: they are tried again one at a time, each with a
note of its own, and a video that takes an engine down while it is alone in it is guilty.

    look(folder, "block", ids, job)    begin(folder, "block", ids, job)    blame(folder, "block", ids, job)    end(folder, "block", ids)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rbft import artifacts, storage

Kind = Literal["block", "alone"]

MAX_DEATHS_TOGETHER = 2
"""Times a block may be begun and not ended, with no engine said to have died, before its videos are suspects: a node that was taken
away is no video's fault, twice in a row it may be."""


@dataclass(frozen=True)
class Note:
    """What is written down about videos that entered an engine together."""

    ids: tuple[str, ...] = ()
    job: str = ""
    """Of the job that began them last."""
    attempts: int = 0
    """Times they were begun and not ended."""
    engine_died: bool = False
    """Whether an engine died while they were in it; where a whole process or node went, nobody could say."""

    @property
    def is_suspect(self) -> bool:
        return self.engine_died or self.attempts >= MAX_DEATHS_TOGETHER


def look(folder: str, kind: Kind, ids: Sequence[str], job: str) -> Note:
    """The note on `ids` as it counts for `job`, an empty one if there is none.

    Attempts of another job count only if an engine died: a job that was ended by hand says nothing about its videos.
    """
    found = _read(_uri(folder, kind, ids))
    if found.job != job and not found.engine_died and kind == "block":
        return Note()
    return found


def begin(folder: str, kind: Kind, ids: Sequence[str], job: str) -> Note:
    """Write down that `ids` are begun; the note as `look` saw it before."""
    before = look(folder, kind, ids, job)
    _write(folder, kind, Note(tuple(ids), job, before.attempts + 1, before.engine_died))
    return before


def blame(folder: str, kind: Kind, ids: Sequence[str], job: str) -> None:
    """Write down that an engine died with `ids` in it."""
    before = _read(_uri(folder, kind, ids))
    _write(folder, kind, Note(tuple(ids), job, max(1, before.attempts), engine_died=True))


def progressed(folder: str, kind: Kind, ids: Sequence[str], job: str) -> None:
    """Write down that suspects got somewhere: their attempts count from one again."""
    _write(folder, kind, Note(tuple(ids), job, 1, engine_died=True))


def end(folder: str, kind: Kind, ids: Sequence[str]) -> None:
    """Strike the note out: the rows of `ids` are written."""
    storage.delete_file(_uri(folder, kind, ids))


def suspects(folder: str) -> set[str]:
    """The ids in notes of blocks that must be tried alone."""
    scheme = folder.partition("://")[0] + "://" if "://" in folder else ""
    notes = (_read(f"{scheme}{info.path}") for info in storage.list_files(f"{folder}/attempts") if "/block-" in info.path)
    return {id_ for note in notes if note.is_suspect for id_ in note.ids}


def forget(folder: str) -> None:
    """Delete all notes, when every video has its row."""
    storage.delete_folder(f"{folder}/attempts")


def _uri(folder: str, kind: Kind, ids: Sequence[str]) -> str:
    return f"{folder}/attempts/{kind}-{artifacts.fingerprint(sorted(ids))}.json"


def _read(uri: str) -> Note:
    if not storage.exists(uri):
        return Note()
    found = storage.read_json(uri)
    return Note(tuple(found["ids"]), found["job"], found["attempts"], found["engine_died"])


def _write(folder: str, kind: Kind, note: Note) -> None:
    storage.write_json(_uri(folder, kind, note.ids), asdict(note))
