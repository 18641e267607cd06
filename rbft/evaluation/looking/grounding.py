"""Boxes from the model's own eyes: Qwen2.5-VL is asked where the objects are, and answers with JSON in pixels of the frame it sees.

The answers are read strictly: what is not the JSON that was asked for is no box. Qwen2-VL writes boxes in another form and is not asked.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from rbft.engines.base import Engine, Sampling
from rbft.evaluation.looking.boxes import Box
from rbft.records import Clip
from rbft.task import Message


def grounding_messages(num_objects: int) -> list[Message]:
    """The question, in the words of Qwen2.5-VL's own examples of grounding."""
    text = (
        f"Locate the {num_objects} most salient objects (people, animals, vehicles, things that matter to what happens), the most salient "
        'first, and output their bounding boxes in JSON format: [{"bbox_2d": [x1, y1, x2, y2], "label": "name"}]. '
        "If there are none, output []."
    )
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]


def parse_boxes(text: str, height: int, width: int, time_s: float | None = None) -> tuple[Box, ...]:
    """The boxes that an answer about a frame of `height` x `width` pixels names, in its order. `ValueError` if it is not that JSON.

    A fence of Markdown around the JSON is allowed, and edges past the frame's are cut off there. A name that comes again is numbered.
    """
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, flags=re.DOTALL)
    boxes: list[Box] = []
    for entry in _ANSWER.validate_json(fenced[1] if fenced else text):
        x0, y0, x1, y1 = entry.bbox_2d
        edges = (max(x0, 0.0) / width, max(y0, 0.0) / height, min(x1 / width, 1.0), min(y1 / height, 1.0))
        if not (edges[0] < edges[2] and edges[1] < edges[3]):
            raise ValueError(f"{entry.bbox_2d} is no box of a frame of {width} x {height} pixels")
        name = entry.label.strip()
        again = sum(box.name is not None and re.fullmatch(rf"{re.escape(name)}( \d+)?", box.name) is not None for box in boxes)
        boxes.append(Box(*edges, time_s=time_s, name=f"{name} {again + 1}" if again else name))
    return tuple(boxes)


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    bbox_2d: tuple[float, float, float, float]
    label: str


_ANSWER = TypeAdapter(list[_Entry])


class GroundedBoxes:
    """Boxes that `engine`'s model sees in `num_moments` frames of a clip, evenly spread; each frame is shown as a still clip of its own."""

    def __init__(self, engine: Engine, num_objects: int = 3, *, num_moments: int = 4, max_new_tokens: int = 512) -> None:
        self._engine = engine
        self._messages = grounding_messages(num_objects)
        self._num_moments = num_moments
        self._sampling = Sampling(max_new_tokens)
        self.num_unreadable = 0
        """Answers that were not the JSON asked for. Their moments have no boxes of their own."""

    async def boxes(self, video_id: str, clip: Clip) -> tuple[Box, ...]:
        """See `BoxSource.boxes`; raises `EngineError`."""
        moments = np.unique(np.linspace(0, clip.num_frames - 1, min(self._num_moments, clip.num_frames)).round().astype(int))
        height, width = clip.frames_THWC.shape[1:3]
        boxes: list[Box] = []
        for index in moments:
            time_s = clip.timestamps_s[index]
            still = replace(clip, frames_THWC=clip.frames_THWC[[index, index]], timestamps_s=(time_s, time_s), fps=1.0)
            answer = await self._engine.generate(still, self._messages, self._sampling)
            try:
                boxes += parse_boxes(answer.text, height, width, time_s)
            except ValueError:
                self.num_unreadable += 1
        return tuple(boxes)
