"""Where the boxes of a video come from: a file, what moves and stands out in it, or the model's own eyes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from rbft.config import MaskingConfig
from rbft.engines.base import Engine
from rbft.errors import ConfigError
from rbft.evaluation.looking.box_files import read_boxes
from rbft.evaluation.looking.boxes import Box
from rbft.evaluation.looking.grounding import GroundedBoxes
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
        return await asyncio.to_thread(salient_boxes, clip, self._num_objects)  # seconds for a long video


def make_source(config: MaskingConfig, engine: Engine | None = None) -> BoxSource:
    """The source that `config` asks for: its file if it names one, else what it says in `find`. Grounding asks `engine`, the base model's.

    Raises `ConfigError` for grounding without an engine, and as `read_boxes` does.
    """
    if config.boxes is not None:
        return FileBoxes(config.boxes)
    if config.find == "saliency":
        return SaliencyBoxes(config.num_objects)
    if engine is None:
        raise ConfigError("evaluation.masking.find is grounding, and no model is there to ask; set it to saliency, or give boxes")
    return GroundedBoxes(engine, config.num_objects)
