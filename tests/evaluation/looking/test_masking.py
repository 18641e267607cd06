"""Masks: over the objects exactly, or over as much at random places that id and seed alone decide."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.config import MaskingConfig
from rbft.evaluation.looking.boxes import Box, boxes_in_frames, covered
from rbft.evaluation.looking.masking import Masker, fill_pixels, random_cover
from rbft.evaluation.looking.sources import SaliencyBoxes
from rbft.records import Clip
from rbft.systems import MaskKind
from tests.evaluation.looking.clips import moving_square
from tests.samples import random_clip


@st.composite
def frame_boxes(draw: st.DrawFn) -> tuple[Box, ...]:
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x0, y0 = draw(st.floats(0, 0.95)), draw(st.floats(0, 0.95))
        boxes.append(Box(x0, y0, draw(st.floats(x0 + 0.01, 1)), draw(st.floats(y0 + 0.01, 1))))
    return tuple(boxes)


@given(st.lists(frame_boxes(), min_size=1, max_size=3), st.integers(8, 90), st.integers(8, 90), st.integers(0, 10))
def test_random_patches_cover_the_area_of_the_boxes_within_a_row_of_pixels(
    frames: list[tuple[Box, ...]], height: int, width: int, seed: int
) -> None:
    cover = random_cover(tuple(frames), height, width, seed)
    assert cover.shape == (len(frames), height, width)
    missing = covered(tuple(frames), height, width).sum(axis=(1, 2)) - cover.sum(axis=(1, 2))
    assert ((missing >= 0) & (missing < width)).all()
    np.testing.assert_array_equal(cover, random_cover(tuple(frames), height, width, seed))


def test_another_seed_gives_other_places_and_places_are_spread_over_the_frame() -> None:
    frames = ((Box(0.0, 0.0, 0.25, 0.25),),) * 2
    covers = np.stack([random_cover(frames, 56, 84, seed) for seed in range(400)])
    reached = np.any(covers, axis=(0, 1)).reshape(56, 84)
    assert reached.mean() > 0.95
    assert reached[0].any() and reached[-1].any() and reached[:, 0].any() and reached[:, -1].any()
    assert len({cover.tobytes() for cover in covers}) > 340  # of some 2,750 places
    assert (covers[:, 0] == covers[:, 1]).all(), "a patch moves though its object does not"


@pytest.mark.parametrize("kind", ["object", "random"])
def test_a_mask_depends_on_id_and_seed_and_not_on_what_was_masked_before(kind: MaskKind) -> None:
    clip, _ = moving_square()

    def masked(masker: Masker, *ids: str) -> list[Clip]:
        return [asyncio.run(masker.mask(id_, clip)).clip for id_ in ids]

    def masker(seed: int = 0) -> Masker:
        return Masker(SaliencyBoxes(), MaskingConfig(seed=seed), kind)

    a, b = masked(masker(), "a", "b")
    b_first, a_then = masked(masker(), "b", "a")
    np.testing.assert_array_equal(a.frames_THWC, a_then.frames_THWC)
    np.testing.assert_array_equal(b.frames_THWC, b_first.frames_THWC)
    other_seed = masked(masker(seed=1), "a")[0]
    assert (a.frames_THWC == b.frames_THWC).all() == (kind == "object")
    assert (a.frames_THWC == other_seed.frames_THWC).all() == (kind == "object")


def test_an_object_mask_leaves_nothing_of_the_object_and_a_random_one_masks_as_much() -> None:
    clip, covered_THW = moving_square()
    before = clip.frames_THWC.copy()
    by_object, by_chance = (
        asyncio.run(Masker(SaliencyBoxes(1), MaskingConfig(fill="black"), kind).mask("v", clip)) for kind in ("object", "random")
    )
    assert (by_object.clip.frames_THWC[covered_THW] == 0).mean() > 0.95
    black = (by_object.clip.frames_THWC == 0).all(axis=-1)
    assert by_object.share == pytest.approx(black.mean())
    assert abs(by_object.share - by_chance.share) < clip.frames_THWC.shape[2] / covered_THW[0].size
    np.testing.assert_array_equal(clip.frames_THWC, before)  # what others hold is not painted over
    assert replace(by_object.clip, frames_THWC=clip.frames_THWC) == clip  # time stays as it was


def test_fills_have_the_colour_that_they_say() -> None:
    clip = random_clip()
    covered_THW = covered(boxes_in_frames([Box(0, 0, 0.5, 0.5)], clip), 56, 84)
    for fill, colour in (("black", 0), ("gray", 128), ("mean", clip.frames_THWC.mean(axis=(0, 1, 2)).round())):
        frames_THWC = fill_pixels(clip, covered_THW, fill).frames_THWC  # type: ignore[arg-type]
        assert (frames_THWC[covered_THW] == colour).all()
        np.testing.assert_array_equal(frames_THWC[~covered_THW], clip.frames_THWC[~covered_THW])


def test_a_clip_in_which_nothing_is_found_stays_as_it_is() -> None:
    clip = replace(random_clip(), frames_THWC=np.full((4, 56, 84, 3), 90, dtype=np.uint8))
    for kind in ("object", "random"):
        masked = asyncio.run(Masker(SaliencyBoxes(), MaskingConfig(), kind).mask("v", clip))  # type: ignore[arg-type]
        assert masked.share == 0
        np.testing.assert_array_equal(masked.clip.frames_THWC, clip.frames_THWC)
