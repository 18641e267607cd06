"""A model behind an OpenAI-compatible server as an `Engine`: vLLM's server with a bigger model, or an API.

The clip goes with the request, as JPEGs, in one of two forms (`OpenAIServerConfig.frames`):
- "images": an image a frame, each after a text with its time in the clip ("2.0 s"). Every server with a vision model takes it.
- "video": one video, in the form that vLLM's server has for frames that are sampled already (`data:video/jpeg;base64,<frame>,<frame>,…`),
  so that the model sees what it sees in `VllmEngine`. By itself vLLM 0.32 keeps the first 32 frames and takes them to be one second
  apart (`vllm/multimodal/media/video.py`), so the request says how many there are and at which rate (`media_io_kwargs`). The server
  allows that if it was started with `--trust-request-mm-kwargs`.

What a request does not say the server decides: vLLM's takes top-p, top-k and penalties from the model's `generation_config.json`, and its
processors may resize frames. `OpenAIServerConfig.extra_body` says such things.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

import openai
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from rbft.config import OpenAIServerConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.errors import ConfigError, EngineError, EngineGoneError, ModelServerError, ModelServerRefusedError, RBFTError
from rbft.records import Clip
from rbft.task import Message

JPEG_QUALITY = 95
"""With colours at full resolution. Beside uncompressed frames 68 of 72 rationales of the miniature stay the same to the letter; at quality
75 it is 65."""

_MEND_URL = "as a rule the url ends in /v1, and the server lists its models at <url>/models"
_CONNECT_TIMEOUT_S = 10.0
"""A machine that is there accepts a connection at once; what takes long is the answer."""


class OpenAIEngine:
    """Asks one server; used in one event loop. See `rbft.engines.base.Engine`.

    Raises `ConfigError` when built if the server will not have the key, the model or what `extra_body` asks for, as it would refuse every
    video, and `ModelServerError` if there is no server. Later, a request that fails after its retries fails alone.
    """

    def __init__(self, config: OpenAIServerConfig) -> None:
        self._config = config
        self._key = _read_key(config)
        settings: dict[str, Any] = {
            "base_url": config.url,
            # Never left out: the package would send what OPENAI_API_KEY holds, which may be another server's.
            "api_key": self._key or "none",
            "timeout": openai.Timeout(config.timeout_s, connect=min(config.timeout_s, _CONNECT_TIMEOUT_S)),
            "max_retries": config.max_retries,
        }
        with openai.OpenAI(**settings) as client:
            self._try_out(client)
        self._client = openai.AsyncOpenAI(**settings)
        self._places = asyncio.Semaphore(config.max_concurrency)
        self._is_closed = False
        self._closing: asyncio.Task[None] | None = None

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        """As the protocol has it; what a model says to refuse is text like any other. Token counts are the server's, 0 if it gives none.

        Raises `ModelServerRefusedError` if the server will not have the request (too long, filtered), `ModelServerError` if it fails, says
        nothing, or cannot be reached.
        """
        if self._is_closed:
            raise EngineGoneError("the engine has been closed")
        async with self._places:
            request = await asyncio.to_thread(self._request, clip, messages, sampling)
            try:
                answer = await self._client.chat.completions.with_raw_response.create(**request)
            except openai.APIError as error:
                raise self._failure(error) from None
        return self._read(answer.text)

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        raise EngineError(f"{self._config.url}: a chat server gives no likelihoods of labels; score with a model folder of your own")

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        raise EngineError(f"{self._config.url}: a chat server gives no likelihoods of labels; score with a model folder of your own")

    async def check_health(self) -> None:
        """Raise `EngineGoneError` if the server cannot be reached or fails; what it lists as its models does not matter."""
        try:
            await self._client.models.with_raw_response.list()
        except openai.APIError as error:
            failure = self._failure(error)
            if not isinstance(failure, ModelServerRefusedError):  # Some servers have no list of models, but they answer.
                raise EngineGoneError(str(failure)) from None

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            with contextlib.suppress(RuntimeError):  # Without a running loop there are no connections left.
                self._closing = asyncio.get_running_loop().create_task(self._client.close())

    def _try_out(self, client: openai.OpenAI) -> None:
        """Ask for a few tokens: that tells a wrong URL, key, model or `extra_body`, and of servers that list no models too."""
        hello: list[Any] = [{"role": "user", "content": "Hello"}]
        try:
            answer = client.chat.completions.with_raw_response.create(
                model=self._config.model, messages=hello, max_tokens=16, extra_body=self._extra_body(fps=1.0)
            )
            _Completion.model_validate_json(answer.text)
        except ValidationError:
            raise ConfigError(f"{self._config.url}: does not answer as an OpenAI-compatible server; {_MEND_URL}") from None
        except openai.APIError as error:
            raise self._start_failure(error) from None

    def _start_failure(self, error: openai.APIError) -> RBFTError:
        failure = self._failure(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            given = f"the environment variable {self._config.api_key_env} holds" if self._key else "api_key_env names none, and it wants"
            return ConfigError(f"{failure}; check the key: {given} one")
        if isinstance(failure, ModelServerRefusedError):
            return ConfigError(f"{failure}; check the model's name ({self._config.model}) and extra_body; {_MEND_URL}")
        return ModelServerError(f"{failure}; start the server, or mend the url")

    def _request(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """What is asked, as keyword arguments of the package's `chat.completions.create`."""
        parts = _video_parts(clip) if self._config.frames == "video" else _image_parts(clip)
        request: dict[str, Any] = {
            "model": self._config.model,
            "messages": [_with_frames(message, parts) for message in messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "extra_body": self._extra_body(clip.fps),
        }
        return request | ({"seed": sampling.seed} if sampling.temperature > 0 else {})

    def _extra_body(self, fps: float) -> dict[str, Any]:
        if self._config.frames == "images":
            return self._config.extra_body
        return {"media_io_kwargs": {"video": {"num_frames": -1, "fps": fps}}} | self._config.extra_body

    def _read(self, answer: str) -> Generated:
        """What the server's `answer` says."""
        try:
            completion = _Completion.model_validate_json(answer)
        except ValidationError:
            raise ModelServerError(f"{self._config.url}: the answer is no chat completion: {self._one_line(answer)}") from None
        choice, usage = completion.choices[0], completion.usage or _Usage()
        if choice.finish_reason == "content_filter":
            raise ModelServerRefusedError(f"{self._config.url}: the server withheld the answer (finish_reason content_filter)")
        text = (choice.message.content or choice.message.refusal or "").strip()
        if not text or choice.finish_reason not in ("stop", "length"):
            what = "no text" if not text else "a text that is not whole"
            counts = f"finish_reason {choice.finish_reason}, {usage.completion_tokens} tokens"
            raise ModelServerError(f"{self._config.url}: the server gave {what} ({counts})")
        return Generated(text, usage.prompt_tokens, usage.completion_tokens, choice.finish_reason)

    def _failure(self, error: openai.APIError) -> ModelServerError:
        """The error of our tree for what the client has given up on."""
        url, retried = self._config.url, f"after up to {self._config.max_retries} retries"
        if isinstance(error, openai.APITimeoutError):
            return ModelServerError(f"{url}: no answer within {self._config.timeout_s:g} s, {retried}")
        if not isinstance(error, openai.APIStatusError):
            return ModelServerError(f"{url}: cannot be reached, {retried}")
        reason = self._one_line(error.message.removeprefix(f"Error code: {error.status_code}").strip(" -")) or "no reason given"
        said = f"HTTP {error.status_code}: {reason}"
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return ModelServerError(f"{url}: the server failed, {retried}: {said}")
        return ModelServerRefusedError(f"{url}: the server refused the request: {said}")

    def _one_line(self, text: str) -> str:
        """The beginning of what a server said, which may repeat what it was sent."""
        return " ".join((text.replace(self._key, "…") if self._key else text).split())[:300]


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    """What we read of an answer. The package's own type holds what it was sent, whatever that was; servers differ."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def _read_key(config: OpenAIServerConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(f"{config.url}: the environment variable {config.api_key_env} (api_key_env) is not set; put the key in it")
    return key


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
