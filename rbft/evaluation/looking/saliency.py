"""A simple saliency: what moves, and what differs in colour from the rest of its frame. Deterministic, without a model.

    motion    how far a pixel is from its own median over the clip
    contrast  how far a pixel is from the mean colour of its frame (Achanta et al. 2009, "Frequency-tuned salient region detection")

Both are distances of colours, blurred over a fiftieth of the frame, scaled to a mean of one over the clip, and added. A frame's objects are
the connected areas that stand out by more than one standard deviation, the most salient ones first.

Shape legend: T frames of H x W pixels, C colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbft.evaluation.looking.boxes import Box
from rbft.records import Clip

_BLUR = 1 / 50
"""Standard deviation, of the frame's shorter side: joins an object's parts, drops the noise of single pixels."""
_SMALLEST = 1 / 400
"""Area of the frame: what is smaller is noise."""


def saliency(clip: Clip) -> NDArray[np.float32]:
    """float32 [T, H, W], with a mean of two over the clip (one if nothing moves, or all is of one colour; zero if both)."""
    from scipy.ndimage import gaussian_filter

    median_HWC = np.median(clip.frames_THWC, axis=0).astype(np.float32)
    sigma = _BLUR * min(median_HWC.shape[:2])
    saliency_THW = np.zeros(clip.frames_THWC.shape[:3], dtype=np.float32)
    for is_motion in (True, False):
        distance_THW = np.empty_like(saliency_THW)
        for frame_HWC, distance_HW in zip(clip.frames_THWC, distance_THW, strict=True):
            reference = median_HWC if is_motion else frame_HWC.mean(axis=(0, 1), dtype=np.float32)
            distance_HW[:] = np.linalg.norm(frame_HWC - reference, axis=-1)
        saliency_THW += gaussian_filter(distance_THW, (0, sigma, sigma)) / max(float(distance_THW.mean()), 1e-6)
    return saliency_THW


def salient_boxes(clip: Clip, num_objects: int = 3) -> tuple[Box, ...]:
    """Boxes around the `num_objects` most salient areas of each frame, scored with the mean saliency within; none if nothing stands out."""
    from scipy.ndimage import find_objects, label

    saliency_THW = saliency(clip)
    threshold = float(saliency_THW.mean() + saliency_THW.std())
    height, width = saliency_THW.shape[1:]
    boxes: list[Box] = []
    for time_s, saliency_HW in zip(clip.timestamps_s, saliency_THW, strict=True):
        labels_HW, _ = label(saliency_HW > threshold)
        found = []
        for number, (rows, columns) in enumerate(find_objects(labels_HW), start=1):
            area = labels_HW[rows, columns] == number
            if area.sum() >= _SMALLEST * height * width:
                score = float(saliency_HW[rows, columns][area].mean())
                corners = (columns.start / width, rows.start / height, columns.stop / width, rows.stop / height)
                found.append(Box(*corners, time_s=time_s, score=score))
        boxes += sorted(found, key=lambda box: -box.salience)[:num_objects]
    return tuple(boxes)
