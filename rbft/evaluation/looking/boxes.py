"""Boxes around the objects of a video, the most salient of them, and which pixels of a clip they cover. Pure arithmetic.

Shape legend: T frames of H x W pixels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbft.errors import DataError
from rbft.records import Clip

FrameBoxes = tuple[tuple["Box", ...], ...]
"""The boxes in each frame of a clip."""


@dataclass(frozen=True)
class Box:
    """A rectangle around an object at one moment of a video. Raises `DataError` if it is none."""

    x0: float
    """Left edge, as a share of the frame's width; `x1` the right one, `y0` and `y1` the upper and lower, as shares of its height."""
    y0: float
    x1: float
    y1: float
    time_s: float | None = None
    """Presentation time in the source file, seconds. A box with neither this nor `frame` holds throughout the video."""
    frame: int | None = None
    """The moment as a number of the source's frame, from 0, at its own rate."""
    name: str | None = None
    """What tells the objects of a video apart: boxes of one name are one object, moving."""
    score: float | None = None
    """How salient it is, 0 or more; counts as 1 where it is not known."""

    def __post_init__(self) -> None:
        if not (0 <= self.x0 < self.x1 <= 1 and 0 <= self.y0 < self.y1 <= 1):
            corners = f"({self.x0}, {self.y0}) to ({self.x1}, {self.y1})"
            raise DataError(f"a box from {corners} is none: give 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, as shares of the frame")
        if self.time_s is not None and self.frame is not None:
            raise DataError("a box has its moment as time_s and as frame; leave one of them out")
        if self.score is not None and not (math.isfinite(self.score) and self.score >= 0):
            raise DataError(f"a box has the score {self.score}; give 0 or more")

    @property
    def salience(self) -> float:
        """Its area, weighted by its score."""
        return (self.x1 - self.x0) * (self.y1 - self.y0) * (1.0 if self.score is None else self.score)

    def moment_s(self, source_fps: float) -> float | None:
        """Seconds from the beginning of the source; None if the box holds throughout."""
        return self.frame / source_fps if self.frame is not None else self.time_s


def most_salient(boxes: Sequence[Box], num_objects: int, source_fps: float) -> tuple[Box, ...]:
    """The boxes of the `num_objects` objects with the largest salience, summed over the annotated moments; order kept.

    Boxes without a name are told apart by their rank at their moment: the most salient one there is the first object, and so on.
    """
    objects = _objects(boxes, source_fps)
    totals: defaultdict[str, float] = defaultdict(float)
    for box, name in zip(boxes, objects, strict=True):
        totals[name] += box.salience
    kept = set(sorted(totals, key=lambda name: (-totals[name], name))[:num_objects])
    return tuple(box for box, name in zip(boxes, objects, strict=True) if name in kept)


def boxes_in_frames(boxes: Sequence[Box], clip: Clip, num_objects: int | None = None) -> FrameBoxes:
    """The boxes in each frame of `clip`: those of the annotated moment nearest to it (the earlier of two), and those that hold throughout.

    With `num_objects` only the boxes of that many most salient objects; an object that has no box at a moment is not there.
    """
    chosen = boxes if num_objects is None else most_salient(boxes, num_objects, clip.source_fps)
    moments = sorted({moment for box in boxes if (moment := box.moment_s(clip.source_fps)) is not None})
    frames = []
    for time_s in clip.timestamps_s:
        nearest = min(moments, key=lambda moment: (abs(moment - time_s), moment)) if moments else None
        frames.append(tuple(box for box in chosen if box.moment_s(clip.source_fps) in (None, nearest)))
    return tuple(frames)


def boxes_of_others(boxes: Mapping[str, Sequence[Box]]) -> dict[str, tuple[Box, ...]]:
    """Each video with the boxes of another one, the next by id: what a habit of looking at the middle of the frame would find there."""
    ids = sorted(boxes)
    return {id_: tuple(boxes[other]) for id_, other in zip(ids, [*ids[1:], *ids[:1]], strict=True)}


def pixels(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the box in a frame of that size: edges at the nearest pixel, at least one pixel each way."""
    top, left = min(round(box.y0 * height), height - 1), min(round(box.x0 * width), width - 1)
    return slice(top, max(round(box.y1 * height), top + 1)), slice(left, max(round(box.x1 * width), left + 1))


def covered(frames: FrameBoxes, height: int, width: int) -> NDArray[np.bool_]:
    """bool [T, H, W]: which pixels lie in a box of their frame."""
    covered_THW = np.zeros((len(frames), height, width), dtype=bool)
    for covered_HW, boxes in zip(covered_THW, frames, strict=True):
        for box in boxes:
            covered_HW[pixels(box, height, width)] = True
    return covered_THW


def _objects(boxes: Sequence[Box], source_fps: float) -> list[str]:
    """The object that each box shows."""
    nameless: defaultdict[float | None, list[int]] = defaultdict(list)
    for index, box in enumerate(boxes):
        if box.name is None:
            nameless[box.moment_s(source_fps)].append(index)
    ranks = {}
    for indices in nameless.values():
        for rank, index in enumerate(sorted(indices, key=lambda index: (-boxes[index].salience, index))):
            ranks[index] = rank
    return [f"#{ranks[index]:06d}" if box.name is None else f"={box.name}" for index, box in enumerate(boxes)]
