"""What lasts of a stage whose run lies in a store (S3, GCS): DeepSpeed reads and writes a local folder, and this keeps the store in step.

    before the first step   the store's newest complete checkpoint and the stage's logs come to the local folder, if it has no newer one
    after each checkpoint   its files go to the store, its marker last; what is not kept any more goes from there
    now and then            the logs go to the store
    at the end              adapter/ and final/ go there, their markers last, and the local folder is removed

Logs are all that a stage leaves beside checkpoints and models: log.jsonl, TensorBoard's files, validations, the id of its MLflow run.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from rbft import artifacts, storage
from rbft.errors import ArtifactError, CheckpointError, TrainingError
from rbft.training.checkpoints import checkpoint_path, complete_checkpoints

_LOG = logging.getLogger(__name__)

_ARTIFACTS = ("checkpoints", "adapter", "final")
_LOGS_EVERY_S = 15.0
_SEEN_WITHIN_S = 15.0
"""How long a network disk may take to show one node what another has written."""


class Mirrored(Protocol):
    """What is trained, as far as this must know."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str: ...
    @property
    def store(self) -> str | None: ...


class Mirror:
    """Keeps `spec.store` in step with `spec.folder`. Every rank has one; does nothing where the stage is trained where it lasts.

    Raises `CheckpointError`, on all ranks, if the store cannot be read or written: nothing is silently unsaved.
    """

    def __init__(self, spec: Mirrored) -> None:
        self._name, self._folder, self._store = spec.name, Path(spec.folder), spec.store
        self._checkpoints = self._folder / "checkpoints"
        self._sent: dict[str, tuple[int, int]] = {}
        """Log -> its size and time of change when it was sent."""
        self._sending_logs = threading.Lock()

    def fetch(self) -> None:
        """Bring what the stage goes on from; every rank calls this. Raises `TrainingError` if the ranks do not share the local folder."""
        if self._store is not None:
            self._require_shared()
            self._on_rank_0(self._fetch_newest)

    def fetch_checkpoint(self, step: int) -> None:
        """Bring the checkpoint after `step` optimiser steps, if it is not here; every rank calls this."""
        path = checkpoint_path(self._checkpoints, step)
        if self._store is not None:
            self._on_rank_0(lambda: None if artifacts.is_complete(str(path)) else self._fetch(path))

    @contextmanager
    def following_logs(self) -> Iterator[None]:
        """Within the block, and at its end, rank 0 sends the logs. Where that fails training goes on: they go with the next checkpoint."""
        ends = threading.Event()

        def send() -> None:
            has_ended = False
            while not has_ended:
                has_ended = ends.wait(_LOGS_EVERY_S)
                try:
                    self._send_logs()
                except (OSError, ArtifactError) as error:
                    _LOG.warning("logs cannot be sent stage=%s error=%s", self._name, error)

        thread = threading.Thread(target=send, daemon=True, name="rbft-mirror")
        if self._store is not None and dist.get_rank() == 0:
            thread.start()
        try:
            yield
        finally:
            ends.set()
            if thread.ident is not None:
                thread.join()

    def add_checkpoint(self, path: Path, kept: Collection[Path]) -> None:
        """Send the complete checkpoint `path`, and remove from the store those that are not among `kept`. On rank 0 alone; raises
        `ArtifactError`."""
        if self._store is not None:
            with self._telling():
                self._send_logs()
                self._send(path)
                names = {each.name for each in kept}
                for name in {parts[1] for parts in self._stored() if parts[0] == "checkpoints"} - names:
                    storage.delete_file(f"{self._store}/checkpoints/{name}/{artifacts.MARKER}")
                    storage.delete_folder(f"{self._store}/checkpoints/{name}")

    def finish(self) -> None:
        """Send the finished models and the last of the logs, and remove the local folder; every rank calls this."""
        if self._store is not None:
            self._on_rank_0(self._send_models)

    def _send_models(self) -> None:
        self._send_logs()
        for name in ("adapter", "final"):
            if artifacts.is_complete(str(self._folder / name)):
                self._send(self._folder / name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fetch_newest(self) -> None:
        here = complete_checkpoints(self._checkpoints)
        files = self._stored()
        stored = sorted(parts[1] for parts in files if parts[0] == "checkpoints" and parts[2:] == (artifacts.MARKER,))
        if here and (not stored or here[-1].name >= stored[-1]):
            for path in here:  # Killed, or refused, before they were all there.
                if path.name not in stored:
                    self._send(path)
            return
        # Of no use any more: another node has gone further, or nothing was ever saved.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)  # a network disk keeps what somebody still has open
        logs = ["/".join(parts) for parts in files if parts[0] not in _ARTIFACTS]
        storage.download_files(str(self._store), logs, self._folder)
        if stored:
            self._fetch(self._checkpoints / stored[-1])

    def _stored(self) -> list[tuple[str, ...]]:
        """The files in the store, as the parts of their paths in the stage's folder."""
        _, root = storage.filesystem(str(self._store))
        files = storage.list_files(str(self._store), recursive=True)
        return [tuple(str(info.path).removeprefix(f"{root}/").split("/")) for info in files]

    def _uri(self, path: Path) -> str:
        return f"{self._store}/{path.relative_to(self._folder).as_posix()}"

    def _fetch(self, artifact: Path) -> None:
        """The complete artifact, as its marker says it; what its bytes are is verified when it is loaded."""
        uri = self._uri(artifact)
        marker = artifacts.read_marker(uri)
        _LOG.warning("fetching from=%s to=%s", storage.shown(uri), artifact)
        storage.download_files(uri, marker["parts"], artifact)
        storage.write_json(str(artifact / artifacts.MARKER), marker)

    def _send(self, artifact: Path) -> None:
        uri = self._uri(artifact)
        marker = artifacts.read_marker(str(artifact))
        storage.delete_file(f"{uri}/{artifacts.MARKER}")  # of one that is replaced
        storage.upload_files(artifact, marker["parts"], uri)
        storage.write_json(f"{uri}/{artifacts.MARKER}", marker)

    def _send_logs(self) -> None:
        """Those that have changed."""
        with self._sending_logs:
            entries = [entry for entry in self._folder.iterdir() if entry.name not in _ARTIFACTS]
            for path in (path for entry in entries for path in (entry, *entry.rglob("*"))):
                with contextlib.suppress(FileNotFoundError):  # a file on its way to its name
                    if path.is_file() and path.suffix != ".tmp":
                        stat = path.stat()
                        stamp = (stat.st_size, stat.st_mtime_ns)
                        if self._sent.get(str(path)) != stamp:
                            _upload(path, self._uri(path))
                            self._sent[str(path)] = stamp

    def _require_shared(self) -> None:
        name = [f"{uuid.uuid4().hex}.tmp"]
        dist.broadcast_object_list(name, src=0)
        token = self._folder / name[0]

        def leave_token() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            token.touch()

        self._on_rank_0(leave_token)
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while not (sees := token.exists()) and time.monotonic() < deadline:
            time.sleep(0.2)
        all_see: list[bool] = [False] * dist.get_world_size()
        dist.all_gather_object(all_see, sees)
        if dist.get_rank() == 0:
            token.unlink(missing_ok=True)
        if not all(all_see):
            raise TrainingError(
                f"{self._name}: {all_see.count(False)} of {len(all_see)} workers do not see {self._folder} of the first one, in which "
                f"a stage of a run in a store is trained; set training.scratch to a folder on a disk that all nodes share, or "
                "training.num_workers to as many as one node has"
            )

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the store or the local disk says, as an `ArtifactError` that names the place."""
        try:
            yield
        except OSError as error:
            raise ArtifactError(f"{storage.shown(str(self._store))}: cannot be kept in step with {self._folder} ({error})") from None

    def _on_rank_0(self, action: Callable[[], None]) -> None:
        """All ranks come back when rank 0 has done it, or raise."""
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                with self._telling():
                    action()
            except ArtifactError as error:
                problem = [str(error)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise CheckpointError(f"{problem[0]}; make room or mend the store and submit the job again: complete checkpoints are kept")


def _upload(file: Path, uri: str) -> None:
    try:
        storage.upload_folder(file, uri)
    except ArtifactError:
        if file.exists():
            raise
        raise FileNotFoundError(file) from None
