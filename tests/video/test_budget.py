"""Frames in flight are bounded, in number and in bytes, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import numpy as np

from rbft.records import Clip, VideoSpec
from rbft.video.budget import FrameBudget, max_clip_bytes

SPEC = VideoSpec(max_frames=4, max_pixels=784)
LARGEST = max_clip_bytes(SPEC)


def clip(num_frames: int) -> Clip:
    return Clip(np.zeros((num_frames, 28, 28, 3), np.uint8), (0.0,) * num_frames, 1.0, 1.0, 1.0, "pyav")


async def run_clips(budget: FrameBudget, sizes: list[int]) -> tuple[int, int, list[int]]:
    """(most clips, most bytes, order of entering) when clips of so many frames go through `budget` at once."""
    most_clips = most_bytes = 0
    order: list[int] = []

    async def one(index: int, num_frames: int) -> None:
        nonlocal most_clips, most_bytes
        async with budget.place(SPEC) as place:
            order.append(index)
            most_clips, most_bytes = max(most_clips, budget.num_clips), max(most_bytes, budget.num_bytes)
            await asyncio.sleep(0)
            place.hold(clip(num_frames))
            await asyncio.sleep(0.001)

    await asyncio.gather(*(one(index, size) for index, size in enumerate(sizes)))
    return most_clips, most_bytes, order


def test_the_largest_clip_there_can_be_is_what_an_undecoded_one_counts_for() -> None:
    assert clip(4).frames_THWC.nbytes == LARGEST


def test_never_more_clips_or_bytes_than_allowed_and_first_come_first_served() -> None:
    clips, _, order = asyncio.run(run_clips(FrameBudget(3, 100 * LARGEST), [2, 4] * 10))
    assert clips == 3 and order == list(range(20))
    _, num_bytes, order = asyncio.run(run_clips(FrameBudget(100, 2 * LARGEST), [2, 4] * 10))
    assert num_bytes <= 2 * LARGEST and order == list(range(20))


def test_a_decoded_clip_gives_back_what_it_does_not_need() -> None:
    async def small_ones() -> int:
        budget = FrameBudget(100, 2 * LARGEST)
        async with budget.place(SPEC) as first, budget.place(SPEC) as second:
            for place in (first, second):
                place.hold(clip(2))
            async with asyncio.timeout(1), budget.place(SPEC):
                return budget.num_bytes

    assert asyncio.run(small_ones()) == 2 * LARGEST


def test_a_clip_larger_than_the_budget_has_it_to_itself_and_failures_give_their_place_back() -> None:
    async def alone() -> tuple[int, int]:
        budget = FrameBudget(4, LARGEST // 2)
        for _ in range(3):
            try:
                async with budget.place(SPEC):
                    assert budget.num_clips == 1
                    raise ValueError
            except ValueError:
                pass
        return budget.num_clips, budget.num_bytes

    assert asyncio.run(alone()) == (0, 0)
