"""Saying why nothing happens: a job that waits for room on the cluster, however long, should not look like one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from ray_jobs.progress import say
from rbft.evaluation.tables import duration

FIRST_SAID_S = 60.0
"""After so long without progress it is said, and again each time the silence has doubled."""


class Waiting:
    """A context manager around work that somebody else does; `progressed` whenever there is news of it."""

    def __init__(self, step: str, needs: str, free: Callable[[], Mapping[str, float]], also: Iterable[str] = ()) -> None:
        """`needs`: what the work needs to go on, for a person; `free`: what the cluster has left; `also`: names of other resources than
        CPUs and GPUs that it needs."""
        self._step, self._needs, self._free, self._also = step, needs, free, tuple(also)
        self._since = time.monotonic()
        self._next_s = FIRST_SAID_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="rbft-waiting")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def progressed(self) -> None:
        self._since = time.monotonic()
        self._next_s = FIRST_SAID_S

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, FIRST_SAID_S / 10)):
            silence_s = time.monotonic() - self._since
            if silence_s >= self._next_s:
                self._next_s = 2 * silence_s
                free = resources(self._free(), self._also)
                say(f"{self._step}: no news for {duration(silence_s)}; needed are {self._needs}; free on the cluster: {free}")


def resources(amounts: Mapping[str, float], also: Iterable[str] = ()) -> str:
    """ "8 CPU, 1 GPU, 1 spot": those that are asked for, in words; those named in `also` even if there are none."""
    said = ("CPU", *also)
    return ", ".join(f"{amounts.get(name, 0.0):g} {name}" for name in ("CPU", "GPU", *also) if amounts.get(name) or name in said)
