"""The cache of decoded clips: bounded in bytes and age, and each owner sees its own."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.errors import ClipExpiredError
from rbft.records import Clip
from serve.clips import ClipCache, Seen

Result = TypeVar("Result")


def seen(num_bytes: int) -> Seen:
    return Seen(Clip(np.zeros(num_bytes, np.uint8), (0.0,), 1.0, 1.0, 1.0, "pyav"), None)


def in_a_loop(scenario: Callable[[], Result]) -> Result:
    async def run() -> Result:
        return scenario()

    return asyncio.run(run())


def test_an_owner_finds_what_it_put_there_and_nobody_else_does() -> None:
    def scenario() -> None:
        cache = ClipCache(1000, 60.0)
        one = seen(10)
        video_id = cache.put("a", one)
        assert video_id and cache.get("a", video_id) is one
        for owner, wanted in [("b", video_id), ("a", video_id + "x"), ("a", ""), ("", video_id)]:
            with pytest.raises(ClipExpiredError, match="upload it again"):
                cache.get(owner, wanted)

    in_a_loop(scenario)


def test_ids_are_long_and_never_the_same() -> None:
    ids = in_a_loop(lambda: [ClipCache(1000, 60.0).put("a", seen(1)) for _ in range(200)])
    assert len(set(ids)) == 200 and all(len(str(video_id)) >= 24 for video_id in ids)


def test_a_clip_is_gone_when_it_is_too_old() -> None:
    def scenario() -> None:
        now = 0.0
        cache = ClipCache(1000, 60.0, lambda: now)
        video_id = cache.put("a", seen(10)) or ""
        now = 59.0
        cache.get("a", video_id)
        now = 60.5  # looking at it does not make it younger
        with pytest.raises(ClipExpiredError):
            cache.get("a", video_id)

    in_a_loop(scenario)


def test_a_clip_is_freed_when_it_is_too_old_although_nobody_asks() -> None:
    async def scenario() -> int:
        cache = ClipCache(1000, 0.05)
        cache.put("a", seen(10))
        assert cache.num_bytes == 10
        await asyncio.sleep(0.2)
        return cache.num_bytes

    assert asyncio.run(scenario()) == 0


@given(sizes=st.lists(st.integers(1, 150), max_size=30))
def test_it_never_holds_more_bytes_than_it_may_and_the_newest_are_there(sizes: list[int]) -> None:
    def scenario() -> None:
        cache = ClipCache(100, 60.0)
        last = None
        for size in sizes:
            video_id = cache.put("a", seen(size))
            assert (video_id is None) == (size > 100)
            last = video_id or last
            assert cache.num_bytes <= 100
        if last:
            cache.get("a", last)

    in_a_loop(scenario)
