"""Checkpoints of a stage: DeepSpeed's shards, written by all ranks while training goes on; complete when their marker is.

    step-00000050/state/…       each rank's shards, as DeepSpeed names them
    step-00000050/COMPLETE.json every file with size and hash; written last
    universal-00000050/         the same for another number of workers, made when one loads it (`rbft.training.universal`)

A half-written checkpoint has no marker, and what has none is not loaded. Bytes are verified by hash before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from rbft import artifacts
from rbft.errors import ArtifactError, CheckpointError
from rbft.training.checkpoint_write import CheckpointWrite, Parts, taken_from
from rbft.training.universal import convert, load_universal

_TAG = "state"
"""DeepSpeed's name for a folder in a checkpoint's folder."""
_PATIENCE_S = 30.0
"""How long rank 0 waits, after an error, for the shards of ranks that may be dead. All write as much, so that they end together."""


class CheckpointWriter:
    """Writes the checkpoints of one stage, at most one at a time. Every rank has one and calls its methods alike. A context manager.

    A checkpoint that is due while the one before is still being written waits for it: the step is held up, and what a crash costs stays
    within the interval.
    """

    def __init__(
        self,
        engine: Any,
        folder: Path,
        fingerprint: str,
        num_kept: int,
        on_complete: Callable[[Path, Collection[Path]], None] = lambda path, kept: None,
    ) -> None:
        """`num_kept`: so many of the newest stay. `on_complete` is called on rank 0, in the writing thread, with each complete checkpoint
        and those that stay; where it raises, the checkpoint counts as not written."""
        self._engine, self._folder, self._fingerprint, self._num_kept = engine, folder, fingerprint, num_kept
        self._on_complete = on_complete
        self._write: CheckpointWrite | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._write is not None:  # training ends with an error: what was saved before it is good
            self._write.finish(_PATIENCE_S)

    @property
    def has_failed(self) -> bool:
        """Whether this rank could not write; `wait` then raises on every rank."""
        return self._write is not None and self._write.problem is not None

    def save(self, step: int, bad_videos: dict[str, str], keep: Collection[int] = ()) -> float:
        """Begin to write the state after `step` optimiser steps; the seconds that training was held up. Older checkpoints go when it is
        complete, but for the newest and those after the steps `keep`, of which the best may be one.

        `bad_videos` (id -> error code) are those of all ranks so far: a resumed stage must know of them, or it would pass where the
        uninterrupted one fails. Raises `CheckpointError` if the checkpoint before it could not be written.
        """
        started = time.monotonic()
        self.wait()
        target = checkpoint_path(self._folder, step)
        if not _agreed(artifacts.is_complete(str(target))):
            if dist.get_rank() == 0:
                shutil.rmtree(target, ignore_errors=True)
            dist.barrier()
            with taken_from(self._engine) as taken:
                self._engine.save_checkpoint(str(target), tag=_TAG, save_latest=False)
            lineage = {"step": step, "num_workers": dist.get_world_size(), "bad_videos": bad_videos}
            self._write = CheckpointWrite(
                *(target, taken, dist.get_rank(), dist.get_world_size()),
                publish=lambda parts: self._publish(target, parts, lineage, frozenset(keep)),
            )
        return time.monotonic() - started

    def wait(self) -> None:
        """Come back when the checkpoint is complete; raises `CheckpointError` on all ranks if one of them could not write it."""
        if self._write is None:
            return
        self._write.written.wait()
        problems = _of_all_ranks(self._write.problem)
        if problems:
            self._write.give_up()  # rank 0 would wait for shards that never come
        else:
            self._write.join()
            problems = _of_all_ranks(self._write.problem)
        self._write = None
        if problems:
            raise CheckpointError(
                f"{problems[0]}; make room or mend the disk or store and submit the job again: complete checkpoints are kept"
            )

    def _publish(self, target: Path, parts: Parts, lineage: dict[str, Any], keep: frozenset[int]) -> None:
        """On rank 0, in the writing thread."""
        artifacts.mark_complete(str(target), self._fingerprint, parts, lineage)
        for path in (target / artifacts.MARKER, target, self._folder):
            _sync(path)
        kept = {*complete_checkpoints(self._folder)[-self._num_kept :], *(checkpoint_path(self._folder, step) for step in keep)}
        self._on_complete(target, kept)
        for old in self._folder.glob("step-*"):
            if old not in kept:  # one without a marker is what a job that was killed had half written
                _remove(old)
        for old in self._folder.glob("universal-*"):
            if checkpoint_path(self._folder, _step(old)) not in kept:
                _remove(old)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimiser steps is."""
    return folder / f"step-{step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if artifacts.is_complete(str(path))]


def load_latest(engine: Any, folder: Path, fingerprint: str) -> tuple[int, dict[str, str]]:
    """Load the newest complete checkpoint into `engine`; the optimiser steps it holds and the bad videos met in them, 0 and {} if there
    is none. Every rank calls this. Raises as `load_checkpoint` does."""
    newest = newest_checkpoint(folder)
    return (0, {}) if newest is None else load_checkpoint(engine, newest, fingerprint)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder` as rank 0 sees it, None if there is none. Every rank calls this."""
    steps = _of_rank_0([_step(path) for path in complete_checkpoints(folder)])
    return checkpoint_path(folder, steps[-1]) if steps else None


def load_checkpoint(engine: Any, path: Path, fingerprint: str) -> tuple[int, dict[str, str]]:
    """Load the complete checkpoint `path` into `engine`; the optimiser steps it holds and the bad videos met in them.

    Every rank calls this. With as many workers as wrote it, what follows is the same bit for bit; with another number its shards are first
    converted (DeepSpeed's universal checkpoints) and what follows differs by rounding.

    Raises `CheckpointError` if it is of another configuration, or its bytes have changed.
    """
    marker = artifacts.read_marker(str(path))
    if marker["fingerprint"] != fingerprint:
        raise CheckpointError(f"{path}: is of another configuration; delete {path.parent} to start afresh")
    verify_together(path)
    if marker["lineage"]["num_workers"] == dist.get_world_size() or not engine.zero_optimization():
        # Without ZeRO there are no shards: every worker loads the same file.
        loaded, _ = engine.load_checkpoint(str(path), tag=_TAG)
    else:
        universal = path.parent / f"universal-{_step(path):08d}"
        problem = None
        if dist.get_rank() == 0:
            try:
                convert(path / _TAG, universal / _TAG, fingerprint)
            except (CheckpointError, ArtifactError) as error:
                problem = str(error)
        if problems := _of_all_ranks(problem):
            raise CheckpointError(problems[0])
        verify_together(universal)
        loaded = load_universal(engine, universal, _TAG)
    if loaded is None:
        raise CheckpointError(f"{path}: DeepSpeed could not load it; delete it to go on from the one before")
    return int(marker["lineage"]["step"]), dict(marker["lineage"]["bad_videos"])


def verify_together(folder: Path) -> None:
    """Raise `CheckpointError` on every rank, naming the part, if a part of `folder` is not what its marker says. Each rank reads its
    share: together they read every byte once."""
    names = sorted(artifacts.read_marker(str(folder))["parts"])
    problem = None
    try:
        artifacts.verify(folder, names[dist.get_rank() :: dist.get_world_size()])
    except ArtifactError as error:
        problem = str(error)
    if problems := _of_all_ranks(problem):
        raise CheckpointError(problems[0])


def _of_all_ranks(problem: str | None) -> list[str]:
    """The problems of all ranks, the same list on each."""
    gathered: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, problem)
    return [each for each in gathered if each is not None]


def _of_rank_0(value: Any) -> Any:
    """Rank 0's `value`: on a network disk the others may not see yet, or still see, what it does."""
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def _agreed(value: bool) -> bool:
    return bool(_of_rank_0(value))


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / artifacts.MARKER).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """See that `path`, a file or a folder's list of names, is on the disk and not in a cache only."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
