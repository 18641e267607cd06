"""The few small frames of a clip that a page shows: a clip at its largest is a hundred megabytes, what is shown of it half of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rbft.records import Clip

MAX_FRAMES, MAX_HEIGHT = 8, 112
"""Of a clip on a page, the height in pixels."""


@dataclass(frozen=True)
class Thumbnails:
    """What is shown of a clip."""

    clip: Clip
    """The shown frames alone, small."""
    num_frames: int
    """Of the whole clip."""


def shown_frames(num_frames: int, max_frames: int = MAX_FRAMES) -> list[int]:
    """Which of `num_frames` frames are shown: up to `max_frames`, evenly spread from first to last."""
    places = np.linspace(0, num_frames - 1, min(max_frames, num_frames)).round().astype(int)
    return [int(place) for place in np.unique(places)]


def thumbnails(clip: Clip, *, max_frames: int = MAX_FRAMES, max_height: int = MAX_HEIGHT) -> Thumbnails:
    """The `shown_frames` of `clip`, at most `max_height` pixels high and four times as wide; smaller ones stay as they are."""
    chosen = shown_frames(clip.num_frames, max_frames)
    frames = []
    for place in chosen:
        image = Image.fromarray(np.asarray(clip.frames_THWC[place], dtype=np.uint8))
        image.thumbnail((4 * max_height, max_height))
        frames.append(np.asarray(image))
    small = replace(clip, frames_THWC=np.stack(frames), timestamps_s=tuple(clip.timestamps_s[place] for place in chosen))
    return Thumbnails(small, clip.num_frames)
