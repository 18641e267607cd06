"""One job at a time on a folder: a second one is refused while the first still works there.

The lease is a file that its holder writes again every few seconds. A holder that was killed leaves it behind; it counts no more when its
process is gone from this machine, or when it has been silent for `STALE_S`. Works on every filesystem of `rbft.storage`. Two jobs that
take over the same dead lease within the same fraction of a second are told apart by reading it again after `_SETTLE_S`.
"""

from __future__ import annotations

import _thread
import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

import psutil

from rbft import storage
from rbft.errors import ArtifactError, JobError

_LOG = logging.getLogger(__name__)

RENEW_S = 10.0
STALE_S = 45.0
_SETTLE_S = 0.2
_LOOK_S = 1.0


class Lease:
    """A context manager that holds `<folder>/lease.json`. Raises `JobError` on entry if a live job holds it.

    If another job takes it over while it is held (after this process was suspended for longer than `STALE_S`), the main thread is
    interrupted as by Ctrl-C: two jobs must not write the same files.
    """

    def __init__(self, folder: str, command: str) -> None:
        me = psutil.Process()
        self.id = uuid.uuid4().hex
        self._uri = f"{folder}/lease.json"
        self._folder = folder
        self._record = {"id": self.id, "host": socket.gethostname(), "pid": me.pid, "started": me.create_time(), "command": command}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="rbft-lease")

    def __enter__(self) -> Self:
        storage.make_folder(self._folder)
        refuse_if_held(self._folder)
        self._write()
        time.sleep(_SETTLE_S)
        if not self._is_mine():
            raise JobError(f"{self._folder}: another job has begun there this very moment; wait for it")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine():
            storage.delete_file(self._uri)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                holder = self._holder()
                if holder is not None and holder["id"] != self.id:
                    _LOG.error("%s: another job took over while this one was suspended; ending", self._folder)
                    _thread.interrupt_main()
                    return
                self._write()
            except ArtifactError as error:  # a store that fails now and then: the next sign of life may get through
                _LOG.warning("lease not renewed error=%s", error)

    def _holder(self) -> dict[str, Any] | None:
        return dict(storage.read_json(self._uri)) if storage.exists(self._uri) else None

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder["id"] == self.id

    def _write(self) -> None:
        storage.write_json(self._uri, self._record | {"at": time.time()})


def refuse_if_held(folder: str) -> None:
    """Raise `JobError` if a live job works on `folder`.

    Whether a process on another machine lives cannot be seen from here: it is waited for its next sign of life, at most `STALE_S`. So a
    job that is submitted again right after its machine went need not be told to wait.
    """
    live = first = holder(folder)
    if first is not None and first["host"] != socket.gethostname():
        _LOG.warning("%s: a job worked there %.0f s ago on %s; seeing whether it still does", folder, first["silence_s"], first["host"])
        while live is not None and live["at"] == first["at"]:
            time.sleep(_LOOK_S)
            live = holder(folder)
    if live is not None:
        raise JobError(
            f"{folder}: another job works there ({live['command']}, process {live['pid']} on {live['host']}, last sign of "
            f"life {live['silence_s']:.0f} s ago); wait for it, or end it and submit again after {STALE_S:.0f} s"
        )


def holder(folder: str) -> dict[str, Any] | None:
    """What the live job that works on `folder` says of itself (`command`, `host`, `pid`), with `silence_s` since its last sign of life;
    None if there is none."""
    uri = f"{folder}/lease.json"
    found = dict(storage.read_json(uri)) if storage.exists(uri) else None
    if found is None or (silence_s := _silence_s(found)) is None:
        return None
    return found | {"silence_s": silence_s}


def _silence_s(holder: dict[str, Any]) -> float | None:
    """Seconds since the holder last wrote, None if it is dead."""
    if holder["host"] == socket.gethostname() and not _runs(holder["pid"], holder["started"]):
        return None
    silence_s = max(0.0, time.time() - float(holder["at"]))
    return silence_s if silence_s < STALE_S else None


def _runs(pid: int, started: float) -> bool:
    try:
        return bool(os.getpid() == pid or abs(psutil.Process(pid).create_time() - started) < 1)
    except psutil.NoSuchProcess:
        return False
