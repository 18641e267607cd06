"""A limit on how many requests begin in a minute."""

from __future__ import annotations

import asyncio
import time


class RequestRate:
    """Lets one request begin every `60 / per_minute` seconds, in the order they come; for one event loop.

    Evenly spaced, so that no minute, wherever the provider begins to count it, holds more than `per_minute`; None lets all pass.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._interval_s = 0.0 if per_minute is None else 60.0 / per_minute
        self._next_s = 0.0

    async def wait(self) -> None:
        """Come back when it is this request's turn."""
        if not self._interval_s:
            return
        now_s = time.monotonic()
        turn_s = max(now_s, self._next_s)
        self._next_s = turn_s + self._interval_s
        await asyncio.sleep(turn_s - now_s)
