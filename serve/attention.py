"""Where the model looks, as pictures: the model loaded by transformers, as vLLM tells nothing of its attention."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rbft.api import Heatmap
from rbft.config import ModelConfig
from rbft.errors import EngineError
from rbft.evaluation.figures import frame_images
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.heatmaps import overlay
from rbft.records import Clip
from serve.model import ServedModel

MAX_SHOWN_HEIGHT = 240
"""Pixels of a frame that is shown to a person: 128 such frames are some 2 MB."""


@dataclass(frozen=True)
class Looks:
    """Where the model looks on one video."""

    heatmaps: tuple[Heatmap, ...]
    """One a frame."""
    video_share: float
    """Of all attention, what goes to the video."""


class Looker(Protocol):
    """What tells where the model looks. Raises `EngineError`, `OverloadedError` and, while it is being replaced, `EngineGoneError`."""

    async def look(self, clip: Clip, context: str | None) -> Looks: ...


class AttentionModel:
    """Reads one clip at a time, in a thread. Raises `ModelError` for a model whose attention cannot be read. See `Looker`."""

    def __init__(self, served: ServedModel, model: ModelConfig, num_layers: int) -> None:
        import torch

        from rbft.evaluation.looking.attention import AttentionReader
        from rbft.models.chat import ChatAdapter
        from rbft.models.load import load_model

        self._task = served.task
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_model(served.folder, model.dtype, model.attention).to(device)
        self._reader = AttentionReader(loaded, ChatAdapter(served.folder, served.spec), num_layers)
        # One thread: two passes through one model would note their attention in each other's maps.
        self._thread = ThreadPoolExecutor(1)

    async def look(self, clip: Clip, context: str | None) -> Looks:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._look, clip, context)

    def _look(self, clip: Clip, context: str | None) -> Looks:
        import torch

        try:
            (attention,) = self._reader.read([(clip, self._task.question_messages(context))])
        except torch.OutOfMemoryError:
            raise EngineError("the video is too large for the device that reads attention; send a shorter one") from None
        return Looks(_heatmaps(clip, attention), attention.video_share)


def _heatmaps(clip: Clip, attention: AttentionMap) -> tuple[Heatmap, ...]:
    share_T = attention.grid_THW.sum(axis=(1, 2)) / (attention.video_share or 1.0)
    token_of_frame = np.arange(clip.num_frames) // -(-clip.num_frames // len(share_T))
    num_frames_T = np.bincount(token_of_frame, minlength=len(share_T))
    images = frame_images(overlay(clip, attention), max_frames=clip.num_frames, max_height=MAX_SHOWN_HEIGHT)
    return tuple(
        Heatmap(
            **{"time_s": image.timestamp_s, "uri": image.uri, "width": image.width, "height": image.height},
            share=float(share_T[token] / num_frames_T[token]),
        )
        for image, token in zip(images, token_of_frame, strict=True)
    )
