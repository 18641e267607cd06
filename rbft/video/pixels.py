"""Stored pixels to the model's: upright, of the wanted size. The same for every decoder."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rbft.video.probe import UPRIGHT


def upright(frame_HWC: np.ndarray, orientation: tuple[int, int, int, int]) -> np.ndarray:
    """The frame as a player shows it: turned and mirrored by `VideoInfo.orientation`."""
    if orientation == UPRIGHT:
        return frame_HWC
    a, b, c, d = orientation
    if a == 0:  # x and y change places
        frame_HWC = frame_HWC.transpose(1, 0, 2)
    return frame_HWC[:: b or d, :: a or c]


def resize(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The uint8 frame at height x width, bicubic with antialiasing (Pillow, what Qwen's processors were trained with).

    A frame that has the size already comes back as it is.
    """
    if frame_HWC.shape[:2] == (height, width):
        return frame_HWC
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
