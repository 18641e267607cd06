"""A model behind an OpenAI-compatible server as an `Engine`: vLLM's server with a bigger model, or an API.

How a clip goes with a request is in `rbft.engines.openai_request`. What a request does not say the server decides: vLLM's takes top-p,
top-k and penalties from the model's `generation_config.json`, and its processors may resize frames. `OpenAIServerConfig.extra_body` says
such things.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Any

import openai

from rbft.config import OpenAIServerConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.engines.openai_answer import Completion, read_completion
from rbft.engines.openai_request import chat_request, extra_body
from rbft.engines.request_rate import RequestRate
from rbft.errors import (
    ConfigError,
    EngineError,
    EngineGoneError,
    ModelRefusedError,
    ModelServerError,
    ModelServerRefusedError,
    OutOfQuotaError,
    RBFTError,
)
from rbft.records import Clip
from rbft.task import Message

_MEND_URL = "as a rule the url ends in /v1, and the server lists its models at <url>/models"
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of OpenAI's for HTTP 429 and 400 that no waiting helps against."""
_WITHHELD = ("content_filter", "content_policy_violation", "moderation_blocked")
"""Codes of OpenAI's and Azure's for HTTP 400 that mean the content and not the request."""
_CONNECT_TIMEOUT_S = 10.0
"""A machine that is there accepts a connection at once; what takes long is the answer."""


class OpenAIEngine:
    """Asks one server; used in one event loop. See `rbft.engines.base.Engine`.

    Raises `ConfigError` when built if the server will not have the key, the model or what `extra_body` asks for, as it would refuse every
    video, and `ModelServerError` if there is no server. Later, a request that fails after its retries fails alone.
    """

    def __init__(self, config: OpenAIServerConfig) -> None:
        self._config = config
        self._key = read_key(config)
        settings: dict[str, Any] = {
            "base_url": config.url,
            # Never left out: the package would send what OPENAI_API_KEY holds, which may be another server's.
            "api_key": self._key or "none",
            "timeout": openai.Timeout(config.timeout_s, connect=min(config.timeout_s, _CONNECT_TIMEOUT_S)),
            "max_retries": config.max_retries,
        }
        with openai.OpenAI(**settings) as client:
            self._try_out(client)
        rate = RequestRate(config.requests_per_minute)

        async def wait_for_its_turn(_: object) -> None:
            await rate.wait()

        # Below the package's retries, so that each try counts.
        http_client = openai.DefaultAsyncHttpxClient(event_hooks={"request": [wait_for_its_turn]})
        self._client = openai.AsyncOpenAI(**settings, http_client=http_client)
        self._places = asyncio.Semaphore(config.max_concurrency)
        self._is_closed = False
        self._closing: asyncio.Task[None] | None = None

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        """As the protocol has it; what a model says to refuse is text like any other. Token counts are the server's, 0 if it gives none.

        Raises as `complete`, also if the server says nothing or withholds what the model said.
        """
        async with self._places:
            request = await asyncio.to_thread(chat_request, self._config, clip, messages, sampling)
            completion = await self._send(request)
        if completion.finish_reason == "content_filter":
            raise ModelRefusedError(f"{self._config.url}: the server withheld the answer (finish_reason content_filter)")
        if not completion.is_whole:
            raise ModelServerError(f"{self._config.url}: the server gave {completion.shortcoming}")
        tokens = completion.tokens
        return Generated(completion.text, tokens.prompt_tokens, tokens.completion_tokens, str(completion.finish_reason))

    async def complete(self, request: dict[str, Any]) -> Completion:
        """What the server answers to a `chat_request`, whatever that is.

        Raises `ModelServerRefusedError` if the server will not have the request (too long), `ModelRefusedError` if it will not for what it
        is about, `OutOfQuotaError` if the account is empty, `ModelServerError` if the server fails, cannot be reached, or sends something
        else than a completion.
        """
        async with self._places:
            return await self._send(request)

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
                model=self._config.model, messages=hello, max_tokens=16, extra_body=extra_body(self._config, fps=1.0)
            )
            read_completion(answer.text, self._config.url)
        except ModelServerError:
            raise ConfigError(f"{self._config.url}: does not answer as an OpenAI-compatible server; {_MEND_URL}") from None
        except openai.APIError as error:
            raise self._start_failure(error) from None

    async def _send(self, request: dict[str, Any]) -> Completion:
        """For who holds one of the places."""
        if self._is_closed:
            raise EngineGoneError("the engine has been closed")
        try:
            answer = await self._client.chat.completions.with_raw_response.create(**request)
        except openai.APIError as error:
            raise self._failure(error) from None
        return read_completion(self._without_key(answer.text), self._config.url)

    def _start_failure(self, error: openai.APIError) -> RBFTError:
        failure = self._failure(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            given = f"the environment variable {self._config.api_key_env} holds" if self._key else "api_key_env names none, and it wants"
            return ConfigError(f"{failure}; check the key: {given} one")
        if isinstance(failure, OutOfQuotaError):
            return failure
        if isinstance(failure, ModelServerRefusedError):
            return ConfigError(f"{failure}; check the model's name ({self._config.model}) and extra_body; {_MEND_URL}")
        return ModelServerError(f"{failure}; start the server, or mend the url")

    def _failure(self, error: openai.APIError) -> ModelServerError | ModelRefusedError:
        """The error of our tree for what the client has given up on."""
        url, retried = self._config.url, f"after up to {self._config.max_retries} retries"
        if isinstance(error, openai.APITimeoutError):
            return ModelServerError(f"{url}: no answer within {self._config.timeout_s:g} s, {retried}")
        if not isinstance(error, openai.APIStatusError):
            return ModelServerError(f"{url}: cannot be reached, {retried}")
        reason = self._one_line(error.message.removeprefix(f"Error code: {error.status_code}").strip(" -")) or "no reason given"
        said = f"HTTP {error.status_code}: {reason}"
        if error.code in _NO_CREDIT:
            return OutOfQuotaError(f"{url}: the account has nothing left to pay with: {said}; top it up, and submit the job again")
        if error.code in _WITHHELD:
            return ModelRefusedError(f"{url}: the server will not answer about this: {said}")
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return ModelServerError(f"{url}: the server failed, {retried}: {said}")
        return ModelServerRefusedError(f"{url}: the server refused the request: {said}")

    def _one_line(self, text: str) -> str:
        """The beginning of what a server said, which may repeat what it was sent."""
        return " ".join(self._without_key(text).split())[:300]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def read_key(config: OpenAIServerConfig) -> str | None:
    """The key to ask with; raises `ConfigError` if its environment variable is not set."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(f"{config.url}: the environment variable {config.api_key_env} (api_key_env) is not set; put the key in it")
    return key
