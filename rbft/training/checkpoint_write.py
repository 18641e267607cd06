"""One checkpoint on its way to the disk: copied into host memory within the step, written and hashed by a thread while training goes on.

No collective is called from the thread. Every rank says by a file of its own, `parts-<rank>.json`, that its shards are written; rank 0's
thread waits for all of these and then writes the marker.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rbft import artifacts, storage
from rbft.errors import ArtifactError

_LOOK_EVERY_S = 0.05
"""How often rank 0 looks whether the others have written their shards."""

Parts = dict[str, dict[str, Any]]
"""Path relative to the checkpoint's folder -> {"bytes", "sha256"}, as `rbft.artifacts.folder_hashes`."""


@contextmanager
def taken_from(engine: Any) -> Iterator[dict[Path, Any]]:
    """Within the block, what DeepSpeed would write to files lands in this dict instead, copied into host memory."""
    taken: dict[Path, Any] = {}

    def take(state_dict: Any, path: str) -> None:
        taken[Path(path)] = _copied(state_dict, {})

    engine.checkpoint_engine.save = take
    try:
        yield taken
    finally:
        del engine.checkpoint_engine.save


def _copied(value: Any, known: dict[Any, torch.Tensor]) -> Any:
    """`value` with every tensor in host memory and nobody else's; tensors that share their memory are copied once."""
    if isinstance(value, torch.Tensor):
        key = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if key not in known:
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, dict):
        copied = copy.copy(value)  # an OrderedDict stays one
        for name, item in value.items():
            copied[name] = _copied(item, known)
        return copied
    if type(value) in (list, tuple):
        return type(value)(_copied(item, known) for item in value)
    return copy.deepcopy(value)


class CheckpointWrite:
    """The thread that writes `taken` below `folder`; on rank 0 it then calls `publish` with the parts of all `num_ranks` ranks."""

    def __init__(self, folder: Path, taken: dict[Path, Any], rank: int, num_ranks: int, publish: Callable[[Parts], None]) -> None:
        self._folder, self._taken, self._rank, self._num_ranks, self._publish = folder, taken, rank, num_ranks, publish
        self.problem: str | None = None
        """Why it cannot be written, with the path."""
        self.written = threading.Event()
        """Set when this rank's shards are on the disk, or will never be."""
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="rbft-checkpoint")
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def finish(self, patience_s: float) -> None:
        """Wait for its end; without a collective, so that it can be called where a rank leaves alone. Rank 0 waits `patience_s` seconds for
        the others' shards after its own, which a rank that has died never writes, and then gives up."""
        self.written.wait()
        self._thread.join(patience_s)
        self.give_up()

    def give_up(self) -> None:
        """Leave it half written, and wait for the thread's end; harmless when it is done."""
        self._given_up.set()
        self._thread.join()

    def _run(self) -> None:
        path = self._folder
        try:
            parts: Parts = {}
            for path, state in self._taken.items():
                parts[path.relative_to(self._folder).as_posix()] = self._write(path, state)
            self._taken.clear()  # the host's memory is needed for the next one
            if self._rank > 0:
                path = self._folder / f"parts-{self._rank}.json"
                storage.write_json(str(path), parts)
            self.written.set()
            if self._rank == 0:
                self._publish(self._all_parts(parts))
        except _GivenUpError:
            pass
        except (OSError, RuntimeError, ArtifactError) as error:  # torch's writer turns an OSError into a RuntimeError
            self.problem = str(error) if isinstance(error, ArtifactError) else f"{path}: cannot be written ({error})"
        finally:
            self._taken.clear()
            self.written.set()

    def _write(self, path: Path, state: Any) -> dict[str, Any]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            file = _HashedFile(stream, self._given_up)
            try:
                torch.save(state, file)
            except (OSError, RuntimeError) as error:
                raise file.error or error from None
            stream.flush()
            os.fsync(stream.fileno())
        return {"bytes": file.num_bytes, "sha256": file.sha256}

    def _all_parts(self, own: Parts) -> Parts:
        """The parts of all ranks, as soon as they are there, and what DeepSpeed itself has put into the folder."""
        parts = dict(own)
        for rank in range(1, self._num_ranks):
            told = self._folder / f"parts-{rank}.json"
            while not told.exists():  # it appears whole
                if self._given_up.wait(_LOOK_EVERY_S):
                    raise _GivenUpError
            parts |= json.loads(told.read_bytes())
            told.unlink()
        for path in sorted(each for each in self._folder.rglob("*") if each.is_file()):
            name = path.relative_to(self._folder).as_posix()
            if name not in parts and name != artifacts.MARKER:
                parts[name] = {"bytes": path.stat().st_size, "sha256": artifacts.file_sha256(path)}
        return parts


class _GivenUpError(Exception):
    """The write is not wanted any more."""


class _HashedFile:
    """What `torch.save` writes to: a stream that is hashed on its way, so that nothing is read back, and the intended bytes are hashed."""

    def __init__(self, stream: Any, given_up: threading.Event) -> None:
        self._stream, self._given_up, self._hash = stream, given_up, hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | _GivenUpError | None = None
        """The first one; torch raises another in its place."""

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: Any) -> int:
        try:
            if self._given_up.is_set():
                raise _GivenUpError
            self._stream.write(data)
        except (OSError, _GivenUpError) as error:
            self.error = self.error or error
            raise
        self._hash.update(data)
        num_bytes = memoryview(data).nbytes
        self.num_bytes += num_bytes
        return num_bytes

    def flush(self) -> None:
        self._stream.flush()
