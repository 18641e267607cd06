"""What a job says while it works: one line a change, the same in a terminal and in a job's log."""

from __future__ import annotations

import time

from rbft.evaluation.tables import duration

SAY_EVERY_S = 5.0
"""A line of progress at most this often."""

_STARTED = time.monotonic()


def say(line: str) -> None:
    """Print `line` with the time since the job began."""
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {line}", flush=True)


class Progress:
    """How far a step is and how long it still takes. The last step is always said."""

    def __init__(self, step: str, unit: str, total: int, done: int = 0) -> None:
        self._step, self._unit, self._total = step, unit, total
        self._first = self._done = done
        self._started = time.monotonic()
        self._said = 0.0

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` units are done."""
        self._done = done
        now = time.monotonic()
        if done < self._total and now - self._said < SAY_EVERY_S:
            return
        self._said = now
        elapsed_s = now - self._started
        fresh = done - self._first
        rate = fresh / elapsed_s if elapsed_s > 0 else 0.0
        left = f", {duration((self._total - done) / rate)} left" if rate > 0 and done < self._total else ""
        say(f"{self._step}: {done}/{self._total} {self._unit}, {rate:.1f}/s{left}{f' ({note})' if note else ''}")
