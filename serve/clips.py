"""Decoded clips, kept for a while so that "why?" needs no second upload. Bounded in bytes and in age; nothing of them is ever on a disk."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

from rbft.errors import ClipExpiredError
from rbft.records import Clip

_OF_KEEPER = "."
"""Between the keeper's name and the rest of an id. No letter of `secrets.token_urlsafe`."""


def keeper_of(video_id: str) -> str:
    """The name of the cache that has given `video_id`; empty if it says none."""
    return video_id.rpartition(_OF_KEEPER)[0]


@dataclass(frozen=True)
class Seen:
    """A video that was looked at."""

    clip: Clip
    context: str | None
    """The text that came with it."""
    label: str | None = None
    """What was answered about it; None where nothing was."""


class ClipCache:
    """The videos of the last minutes, each for its owner alone; for one event loop. Of too many bytes, those not used for longest go."""

    def __init__(self, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic, keeper: str = "") -> None:
        """`keeper` stands in the ids, for who looks for the cache that has one."""
        self.max_age_s = max_age_s
        self._prefix = f"{keeper}{_OF_KEEPER}" if keeper else ""
        self._max_bytes = max_bytes
        self._seen: TTLCache[tuple[str, str], Seen] = TTLCache(max_bytes, max_age_s, clock, lambda seen: seen.clip.frames_THWC.nbytes)

    @property
    def num_bytes(self) -> int:
        """Of the frames that are kept."""
        return int(self._seen.currsize)

    @property
    def num_clips(self) -> int:
        return len(self._seen)

    def put(self, owner: str, seen: Seen) -> str | None:
        """The id by which `owner` finds `seen` again, 144 random bits; None if it is larger than the whole cache."""
        if seen.clip.frames_THWC.nbytes > self._max_bytes:
            return None
        video_id = self._prefix + secrets.token_urlsafe(18)
        self._seen[owner, video_id] = seen
        # Not only when somebody asks again: what is too old must go even if nobody ever does.
        asyncio.get_running_loop().call_later(self.max_age_s + 0.01, self._seen.expire)
        return video_id

    def get(self, owner: str, video_id: str) -> Seen:
        """What `owner` put there; raises `ClipExpiredError`, the same for what is gone, another's, or never was."""
        try:
            return self._seen[owner, video_id]
        except KeyError:
            raise ClipExpiredError(
                f"no video of this id is kept for this key; they are kept for {self.max_age_s:g} s at most, upload it again"
            ) from None
