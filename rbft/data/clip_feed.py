"""Clips decoded and encoded ahead of who takes them, in order, on a few threads.

The heavy parts run outside the interpreter lock (decoder processes, torch), so threads are enough.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from rbft.errors import VideoError
from rbft.records import Clip, Example, VideoSpec

if TYPE_CHECKING:
    from rbft.video.clip_cache import ClipCache
    from rbft.video.pool import DecodePool

_LOG = logging.getLogger(__name__)

Draw = TypeVar("Draw")
Made = TypeVar("Made")


class ClipFeed(Generic[Draw, Made]):
    """Uses a pool. A decoded clip is kept in `clips` for the next epoch or stage; without it every video is decoded each time."""

    def __init__(self, pool: DecodePool, spec: VideoSpec, num_threads: int, clips: ClipCache | None = None) -> None:
        self._pool, self._spec, self._clips = pool, spec, clips
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="rbft-clips")
        self._lookahead = 4 * num_threads
        self._warned: set[str] = set()

    def stream(
        self, wanted: Iterable[tuple[Example, Draw] | None], encode: Callable[[Clip, Draw], Made]
    ) -> Generator[Made | VideoError | None]:
        """For each of `wanted` what `encode` makes of its clip, or why the video cannot be used; None for None."""
        pending: deque[Future[Made | VideoError | None]] = deque()
        try:
            for each in wanted:
                pending.append(self._threads.submit(self._one, each, encode))
                if len(pending) >= self._lookahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _one(self, wanted: tuple[Example, Draw] | None, encode: Callable[[Clip, Draw], Made]) -> Made | VideoError | None:
        if wanted is None:
            return None
        example, draw = wanted
        try:
            return encode(self._clip(example), draw)
        except VideoError as error:
            if example.id not in self._warned:
                _LOG.warning("video left out id=%s code=%s error=%s", example.id, error.code, error)
            self._warned.add(example.id)
            return error

    def _clip(self, example: Example) -> Clip:
        def decode() -> Clip:
            return self._pool.decode(example.uri, self._spec, example.start_s, example.end_s)

        return decode() if self._clips is None else self._clips.clip(example, self._spec, decode)
