"""Clips with one object whose place is known."""

from __future__ import annotations

import numpy as np

from rbft.records import Clip


def clip_of(frames_THWC: np.ndarray, fps: float = 1.0) -> Clip:
    """The frames as a clip that begins at 0 s."""
    num_frames = len(frames_THWC)
    return Clip(frames_THWC, tuple(i / fps for i in range(num_frames)), fps, num_frames / fps, 10.0, "pyav")


def moving_square(num_frames: int = 6, height: int = 84, width: int = 112, side: int = 20, step: int = 12) -> tuple[Clip, np.ndarray]:
    """A red square that goes to the right over gray, and which pixels it covers: bool [T, H, W]."""
    frames_THWC = np.full((num_frames, height, width, 3), 120, dtype=np.uint8)
    covered_THW = np.zeros((num_frames, height, width), dtype=bool)
    for index in range(num_frames):
        covered_THW[index, 30 : 30 + side, 4 + step * index : 4 + step * index + side] = True
    frames_THWC[covered_THW] = (220, 30, 30)
    return clip_of(frames_THWC), covered_THW
