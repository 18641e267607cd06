"""What a job says while it works: one line a change, the same in a terminal and in a job's log.

Where RAY_LOGGING_CONFIG_ENCODING is JSON, by which Ray writes its workers' logs so, each line is a JSON object like theirs.
"""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime

from rbft.evaluation.tables import duration
from rbft.log_fields import fields

SAY_EVERY_S = 5.0
"""A line of progress at most this often."""

_STARTED = time.monotonic()


def say(line: str) -> None:
    """Print `line` with the time since the job began."""
    elapsed_s = time.monotonic() - _STARTED
    if os.environ.get("RAY_LOGGING_CONFIG_ENCODING") == "JSON":
        about = {"asctime": datetime.now(UTC).isoformat(), "levelname": "INFO", "message": line, "elapsed_s": round(elapsed_s, 1)}
        print(json.dumps(about | fields()), flush=True)
        return
    minutes, seconds = divmod(int(elapsed_s), 60)
    print(f"[{minutes:3d}:{seconds:02d}] {line}", flush=True)


class Progress:
    """How far a step is and how long it still takes. The end is always said.

    The rate is that of the work: once there is more than one report, it counts from the first, before which engines were started.
    """

    def __init__(self, step: str, unit: str, total: int) -> None:
        self._step, self._unit, self._total = step, unit, total
        self._done = self._errors = 0
        self._started = time.monotonic()
        self._said = 0.0
        self._first: tuple[float, int] | None = None
        """When the first report came, and how many units it was about."""

    def add(self, num_done: int, num_errors: int = 0) -> None:
        """So many more units are done, so many of them with an error."""
        self._done += num_done
        self._errors += num_errors
        now = time.monotonic()
        since, num_before = self._first or (self._started, 0)
        self._first = self._first or (now, num_done)
        if self._done < self._total and now - self._said < SAY_EVERY_S:
            return
        self._said = now
        rate = (self._done - num_before) / (now - since) if now > since else 0.0
        left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 and self._done < self._total else ""
        errors = f" ({self._errors} errors)" if self._errors else ""
        say(f"{self._step}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s{left}{errors}")
