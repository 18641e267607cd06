"""Checkpoints of a stage: written by all ranks, complete when their marker is, verified by hash before anything is unpickled."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rbft import artifacts
from rbft.errors import ArtifactError, CheckpointError

KEEP = 2
"""Complete checkpoints kept; the newest, and the one before it in case a disk loses the newest."""


def save_checkpoint(engine: Any, folder: Path, step: int, fingerprint: str, bad_videos: dict[str, str], keep: Collection[int] = ()) -> None:
    """Write the state after `step` optimiser steps to `folder/step-…`; every rank calls this. Older checkpoints beyond `KEEP` go, but those
    of the steps in `keep`.

    `bad_videos` (id -> error code) are those of all ranks so far: a resumed stage must know of them, or it would pass where the
    uninterrupted one fails.
    """
    target = _path(folder, step)
    if artifacts.is_complete(str(target)):
        return
    if dist.get_rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(target), tag="state", save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        lineage = {"step": step, "num_workers": dist.get_world_size(), "bad_videos": bad_videos}
        artifacts.mark_complete(str(target), fingerprint, artifacts.folder_hashes(target), lineage)
        kept = {_path(folder, each) for each in keep}
        for old in complete_checkpoints(folder)[:-KEEP]:
            if old not in kept:
                (old / artifacts.MARKER).unlink()
                shutil.rmtree(old)
    dist.barrier()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return [path for path in sorted(folder.glob("step-*")) if artifacts.is_complete(str(path))]


def load_latest(engine: Any, folder: Path, fingerprint: str) -> tuple[int, dict[str, str]]:
    """Load the newest complete checkpoint into `engine`; the optimiser steps it holds and the bad videos met in them, 0 and {} if there
    is none.

    Raises `CheckpointError` if it is of another configuration or number of workers, or its bytes have changed.
    """
    found = complete_checkpoints(folder)
    if not found:
        return 0, {}
    return _load(engine, found[-1], fingerprint)


def load_step(engine: Any, folder: Path, step: int, fingerprint: str) -> None:
    """Load the checkpoint of `step`, which is there; raises `CheckpointError` as `load_latest` does."""
    _load(engine, _path(folder, step), fingerprint)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _load(engine: Any, newest: Path, fingerprint: str) -> tuple[int, dict[str, str]]:
    folder = newest.parent
    marker = artifacts.read_marker(str(newest))
    if marker["fingerprint"] != fingerprint:
        raise CheckpointError(f"{newest}: is of another configuration; delete {folder} to start afresh")
    num_workers = marker["lineage"]["num_workers"]
    if num_workers != dist.get_world_size():
        raise CheckpointError(
            f"{newest}: was written by {num_workers} workers, this run has {dist.get_world_size()}; "
            f"set training.num_workers={num_workers}, or delete {folder}"
        )
    try:
        artifacts.verify(newest)
    except ArtifactError as error:
        raise CheckpointError(str(error)) from None
    path, _ = engine.load_checkpoint(str(newest), tag="state")
    if path is None:
        raise CheckpointError(f"{newest}: DeepSpeed could not load it; delete it to go on from the one before")
    return int(marker["lineage"]["step"]), dict(marker["lineage"]["bad_videos"])
