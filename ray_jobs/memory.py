"""Peak memory of a job: this process and all below it (a local Ray's daemons and workers, engines, decoders)."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil


class PeakMemory:
    """A context manager that samples the summed resident memory of the process tree; shared pages count once.

    A sample of some thirty processes takes a tenth of a second of one core, hence not more often than every five seconds.
    """

    def __init__(self, every_s: float = 5.0) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="rbft-memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        is_last = False
        while not is_last:
            is_last = self._stop.wait(self._every_s)
            self.peak_bytes = max(self.peak_bytes, sum(_resident_bytes(process) for process in [me, *me.children(recursive=True)]))


def _resident_bytes(process: psutil.Process) -> int:
    """Proportional set size: resident pages, each divided by the number of processes that share it."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0
