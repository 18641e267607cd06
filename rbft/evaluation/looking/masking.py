"""Masks over a clip's objects, and over random places of equal area (paper, Table 5; readings, 23).

    source (`sources`, `grounding`) -> boxes of the three most salient objects -> pixels covered -> a new `Clip`

A random mask has a patch for each box of a frame, of its size; the places are drawn once for the whole clip. Patches may cover one another;
what is then missing is covered elsewhere, until the area is that of the objects in each frame, to within a row of pixels. A patch may cover
an object too.

Shape legend: T frames of H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rbft.config import MaskingConfig
from rbft.evaluation.looking.boxes import FrameBoxes, boxes_in_frames, covered, pixels
from rbft.evaluation.looking.sources import BoxSource
from rbft.records import Clip
from rbft.seeds import derive_seed
from rbft.systems import MaskKind

_NUM_PLACES = 256
"""Drawn for a clip: one an object, the others for what is missing."""


@dataclass(frozen=True)
class Masked:
    """A clip behind masks."""

    clip: Clip
    share: float
    """Of its pixels that are masked; 0 if nothing was found in it."""


class Masker:
    """Masks clips as `config` says, over the objects that `source` finds or over random places."""

    def __init__(self, source: BoxSource, config: MaskingConfig, kind: MaskKind) -> None:
        self._source = source
        self._config = config
        self._kind = kind

    async def mask(self, video_id: str, clip: Clip) -> Masked:
        """The masked clip, which depends on the clip, its id and the configuration alone. Raises what the source raises."""
        boxes = await self._source.boxes(video_id, clip)
        frames = boxes_in_frames(boxes, clip, self._config.num_objects)
        height, width = clip.frames_THWC.shape[1:3]
        if self._kind == "object":
            covered_THW = covered(frames, height, width)
        else:
            covered_THW = random_cover(frames, height, width, derive_seed(self._config.seed, "masking", video_id))
        return Masked(fill_pixels(clip, covered_THW, self._config.fill), float(covered_THW.mean()))


def fill_pixels(clip: Clip, covered_THW: NDArray[np.bool_], fill: Literal["mean", "black", "gray"]) -> Clip:
    """`clip` with the covered pixels black, gray (128), or of the clip's mean colour."""
    frames_THWC = clip.frames_THWC.copy()
    colours = {"black": np.zeros(3), "gray": np.full(3, 128)}
    colour = colours[fill] if fill in colours else clip.frames_THWC.mean(axis=(0, 1, 2)).round()
    frames_THWC[covered_THW] = colour.astype(np.uint8)
    return replace(clip, frames_THWC=frames_THWC)


def random_cover(frames: FrameBoxes, height: int, width: int, seed: int) -> NDArray[np.bool_]:
    """bool [T, H, W]: patches of the boxes' sizes at random places that cover, frame by frame, the area that the boxes cover.

    Never more, and less by fewer pixels than a row of the frame has. A patch stands still, as far as one that grows and shrinks with its
    object can.
    """
    target_THW = covered(frames, height, width)
    places = np.random.default_rng(seed).random((_NUM_PLACES, 2))
    random_THW = np.zeros_like(target_THW)
    for random_HW, target_HW, boxes in zip(random_THW, target_THW, frames, strict=True):
        sizes = [_size(*pixels(box, height, width)) for box in boxes]
        missing, smallest = int(target_HW.sum()), min((columns for _, columns in sizes), default=1)
        for number, (down, right) in enumerate(places if sizes else ()):
            if missing < smallest:
                break
            patch_height, patch_width = sizes[number % len(sizes)]
            top, left = int(down * (height - patch_height + 1)), int(right * (width - patch_width + 1))
            missing -= _cover(random_HW[top : top + patch_height, left : left + patch_width], missing)
        _cover(random_HW, missing)  # places run out where boxes nearly fill the frame
    return random_THW


def _cover(patch_HW: NDArray[np.bool_], most: int) -> int:
    """Cover the rows of `patch_HW` from above, as long as that covers at most `most` further pixels; how many it were."""
    new_H = np.cumsum((~patch_HW).sum(axis=1))
    num_rows = int(np.searchsorted(new_H, most, side="right"))
    patch_HW[:num_rows] = True
    return int(new_H[num_rows - 1]) if num_rows else 0


def _size(rows: slice, columns: slice) -> tuple[int, int]:
    return rows.stop - rows.start, columns.stop - columns.start
