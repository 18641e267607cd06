"""Where the boxes of a video come from: a file, or what moves and stands out in it. The model's own eyes are in `grounding`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rbft.evaluation.looking.box_files import read_boxes
from rbft.evaluation.looking.boxes import Box
from rbft.evaluation.looking.saliency import salient_boxes
from rbft.records import Clip


class BoxSource(Protocol):
    async def boxes(self, video_id: str, clip: Clip) -> tuple[Box, ...]:
        """The boxes of the video; none if nothing was found. Raises errors of our tree."""
        ...


class FileBoxes:
    """Boxes of a file (`box_files`); a video that is not in it has none."""

    def __init__(self, path: str | Path) -> None:
        self._boxes = read_boxes(path)

    async def boxes(self, video_id: str, clip: Clip) -> tuple[Box, ...]:
        return self._boxes.get(video_id, ())


class SaliencyBoxes:
    """Boxes around what moves and stands out (`saliency`): nothing but the clip decides, and the same clip has the same boxes."""

    def __init__(self, num_objects: int = 3) -> None:
        self._num_objects = num_objects

    async def boxes(self, video_id: str, clip: Clip) -> tuple[Box, ...]:
        return salient_boxes(clip, self._num_objects)
