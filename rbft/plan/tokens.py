"""How many tokens samples have: of their videos, prompts and answers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rbft.config import RunConfig
from rbft.errors import RBFTError, VideoError
from rbft.models.shape import ModelShape
from rbft.plan.steps import Range
from rbft.records import Example, VideoSpec
from rbft.task import Message
from rbft.video.sampling import fit_size, sample_times, video_tokens

if TYPE_CHECKING:
    from rbft.models.chat import ChatAdapter

_NUM_PROBED = 16
_ASSUMED_VIDEO = (30.0, 720, 1280)
"""Seconds, height, width: the typical video where none can be looked at."""
_CHARACTERS_A_TOKEN = 4
_CHAT_FORMAT_TOKENS = 25
"""Qwen's system line and turn markers."""


def count_video_tokens(config: RunConfig, shape: ModelShape | None, examples: Sequence[Example] | None) -> tuple[Range, str]:
    """Of the typical and the largest video, and where the former comes from, in words."""
    spec = config.video.spec()
    side, temporal = (shape.token_side, shape.temporal_patch_size) if shape else (spec.patch_multiple, 2)
    probed = _probe_some(examples or (), spec)
    if probed:
        typical = round(statistics.median(video_tokens(*video, side, temporal) for video in probed))
        source = f"the median of {len(probed)} of the videos"
    else:
        duration_s, height, width = _ASSUMED_VIDEO
        num_frames = len(sample_times(duration_s, None, None, spec).times_s)
        typical = video_tokens(num_frames, *fit_size(height, width, spec), side, temporal)
        source = f"{duration_s:g} s of {width} x {height}, assumed as no video is there to look at"
    most = video_tokens(spec.max_frames, side, spec.max_pixels // side, side, temporal)
    return Range(min(typical, most), most), source


def _probe_some(examples: Sequence[Example], spec: VideoSpec) -> list[tuple[int, int, int]]:
    """(frames, height, width) as the model would see them, of up to `_NUM_PROBED` local videos spread over `examples`."""
    from rbft.video.probe import probe

    found = []
    local = [example for example in examples if "://" not in example.uri]
    for example in local[:: max(1, math.ceil(len(local) / _NUM_PROBED))]:
        try:
            info = probe(example.uri)
            times = sample_times(info.duration_s or 0.0, example.start_s, example.end_s, spec)
        except VideoError:
            continue
        # A quarter turn swaps the sides, which changes the count of tokens by at most a row; not worth a case.
        found.append((len(times.times_s), *fit_size(info.height, info.width, spec)))
    return found


def contexts_of(examples: Sequence[Example]) -> tuple[str, str]:
    """The text of middle length that comes with a video, and the longest."""
    texts = sorted((example.context or "" for example in examples), key=len) or [""]
    return texts[len(texts) // 2], texts[-1]


def load_adapter(config: RunConfig, notes: list[str]) -> ChatAdapter | None:
    """None, and a note, where the model's tokenizer is not there."""
    if (Path(config.model.path) / "config.json").is_file():
        from rbft.models.chat import ChatAdapter

        try:
            return ChatAdapter(config.model.path, config.video.spec())
        except RBFTError as error:
            notes.append(str(error))
    notes.append(f"text tokens are estimated at {_CHARACTERS_A_TOKEN} characters each until the model's tokenizer is there")
    return None


def prompt_tokens(ask: Callable[[str | None], list[Message]], contexts: tuple[str, str], adapter: ChatAdapter | None) -> Range:
    """With the context of middle length and with the longest; the video's placeholder not counted."""

    def count(context: str) -> int:
        messages = ask(context or None)
        if adapter is not None:
            return len(adapter.prompt_ids(messages)) - 1
        return _CHAT_FORMAT_TOKENS + math.ceil(len(messages[0]["content"][1]["text"]) / _CHARACTERS_A_TOKEN)

    return Range(*map(count, contexts))


def answer_tokens(labels: Sequence[str], adapter: ChatAdapter | None) -> int:
    """Of the longest label."""
    if adapter is not None:
        return max(len(adapter.answer_ids(label)) for label in labels)
    return 1 + max(math.ceil(len(label) / _CHARACTERS_A_TOKEN) for label in labels)
