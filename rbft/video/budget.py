"""How many decoded clips may be in memory at a time, in number and in bytes: decoders run ahead of an engine, and do not flood it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rbft.records import Clip, VideoSpec


def max_clip_bytes(spec: VideoSpec) -> int:
    """The most bytes of frames that a clip of `spec` can have; before a video is decoded that is all one knows."""
    return spec.max_frames * spec.max_pixels * 3


class Place:
    """One clip's share of a budget, from before it is decoded until it is done with."""

    def __init__(self, budget: FrameBudget, num_bytes: int) -> None:
        self._budget = budget
        self.num_bytes = num_bytes

    def hold(self, clip: Clip) -> None:
        """Give back what the decoded clip does not need."""
        self._budget._release(max(0, self.num_bytes - clip.frames_THWC.nbytes), 0)
        self.num_bytes = min(self.num_bytes, clip.frames_THWC.nbytes)


class FrameBudget:
    """For one event loop. Clips get their places in the order they ask, so that a long video is not passed by short ones for ever."""

    def __init__(self, max_clips: int, max_bytes: int) -> None:
        self._max_clips, self._max_bytes = max_clips, max_bytes
        self.num_clips = self.num_bytes = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def place(self, spec: VideoSpec) -> AsyncIterator[Place]:
        """Wait for room for a clip of `spec`. One that is larger than the whole budget has it to itself."""
        wanted = min(max_clip_bytes(spec), self._max_bytes)
        async with self._turn:
            while self.num_clips >= self._max_clips or self.num_bytes + wanted > self._max_bytes:
                self._freed.clear()
                await self._freed.wait()
            self.num_clips += 1
            self.num_bytes += wanted
        place = Place(self, wanted)
        try:
            yield place
        finally:
            self._release(place.num_bytes, 1)

    def _release(self, num_bytes: int, num_clips: int) -> None:
        self.num_bytes -= num_bytes
        self.num_clips -= num_clips
        self._freed.set()
