"""What an OpenAI-compatible server is asked about a clip. The whole of it: equal requests to one server are the same question.

The clip goes with the request, as JPEGs, in one of two forms (`OpenAIServerConfig.frames`):
- "images": an image a frame, each after a text with its time in the clip ("2.0 s"). Every server with a vision model takes it.
- "video": one video, in the form that vLLM's server has for frames that are sampled already (`data:video/jpeg;base64,<frame>,<frame>,…`),
  so that the model sees what it sees in `VllmEngine`. By itself vLLM 0.32 keeps the first 32 frames and takes them to be one second
  apart (`vllm/multimodal/media/video.py`), so the request says how many there are and at which rate (`media_io_kwargs`). The server
  allows that if it was started with `--trust-request-mm-kwargs`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from rbft.config import OpenAIServerConfig
from rbft.engines.base import Sampling
from rbft.records import Clip
from rbft.task import Message

JPEG_QUALITY = 95
"""With colours at full resolution. Beside uncompressed frames 68 of 72 rationales of the miniature stay the same to the letter; at quality
75 it is 65."""


def chat_request(
    config: OpenAIServerConfig, clip: Clip, messages: Sequence[Message], sampling: Sampling, *, top_logprobs: int = 0
) -> dict[str, Any]:
    """Keyword arguments of the openai package's `chat.completions.create`, JSON types all of them."""
    parts = _video_parts(clip) if config.frames == "video" else _image_parts(clip)
    request: dict[str, Any] = {
        "model": config.model,
        "messages": [_with_frames(message, parts) for message in messages],
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "extra_body": extra_body(config, clip.fps),
    }
    if sampling.temperature > 0:
        request["seed"] = sampling.seed
    if top_logprobs:
        request |= {"logprobs": True, "top_logprobs": top_logprobs}
    return request


def extra_body(config: OpenAIServerConfig, fps: float) -> dict[str, Any]:
    if config.frames == "images":
        return config.extra_body
    return {"media_io_kwargs": {"video": {"num_frames": -1, "fps": fps}}} | config.extra_body


def _with_frames(message: Message, frames: list[Message]) -> Message:
    """`message` with `frames` where the video belongs."""
    if isinstance(message["content"], str):
        return message
    parts = [part for content in message["content"] for part in (frames if content["type"] == "video" else [content])]
    return message | {"content": parts}


def _image_parts(clip: Clip) -> list[Message]:
    parts: list[Message] = []
    for time_s, jpeg in zip(clip.timestamps_s, _jpegs(clip), strict=True):
        parts.append({"type": "text", "text": f"{time_s - clip.timestamps_s[0]:.1f} s"})
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg}"}})
    return parts


def _video_parts(clip: Clip) -> list[Message]:
    return [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(_jpegs(clip))}"}}]


def _jpegs(clip: Clip) -> list[str]:
    """The frames as JPEGs in base64."""
    encoded = []
    for frame_HWC in clip.frames_THWC:
        buffer = io.BytesIO()
        Image.fromarray(frame_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return encoded
