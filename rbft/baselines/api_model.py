"""A model behind an OpenAI-compatible server as a system: a video's frames and the task's question in, a `Prediction` out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from rbft.baselines.answer_cache import AnswerCache, answer_key
from rbft.baselines.answers import APIAnswer
from rbft.baselines.label_shares import label_shares
from rbft.config import APIModelConfig
from rbft.engines.base import Sampling
from rbft.engines.openai import OpenAIEngine
from rbft.engines.openai_answer import Choice, Completion, Message
from rbft.engines.openai_request import chat_request
from rbft.errors import ArtifactError, ConfigError, JobError, ModelRefusedError, ModelServerError, OutOfQuotaError, RBFTError
from rbft.rationales.gates import is_refusal
from rbft.records import Clip, Example, Prediction, VideoSpec
from rbft.task import Message as ChatMessage
from rbft.task import Task

if TYPE_CHECKING:
    from rbft.video.budget import FrameBudget
    from rbft.video.pool import DecodePool

_FOR_ALL = (ArtifactError, ConfigError, JobError, OutOfQuotaError)
"""What every further video would meet too, so that it ends the asking and is no video's error row."""


class APIModel:
    """Asks what the cache does not know; used in one event loop. Nothing is sent, and no key needed, before there is such a question."""

    def __init__(self, config: APIModelConfig, cache: AnswerCache, max_new_tokens: int) -> None:
        self._config = config
        self._cache = cache
        self._sampling = Sampling(config.max_new_tokens or max_new_tokens)
        self._engine: OpenAIEngine | None = None
        self._starting = asyncio.Lock()

    async def ask(self, clip: Clip, messages: list[ChatMessage]) -> tuple[Completion, bool]:
        """The model's answer, be it a refusal, and whether it came from the cache.

        Raises `ModelServerError` for this request's failure, and for what every request would meet `ConfigError`, `OutOfQuotaError`,
        `JobError` if there is no server, `ArtifactError` if the cache cannot be written.
        """
        config = self._config
        request = await asyncio.to_thread(chat_request, config, clip, messages, self._sampling, top_logprobs=config.top_logprobs)
        key = await asyncio.to_thread(answer_key, config.url, request)
        if (known := await asyncio.to_thread(self._cache.get, key)) is not None:
            return known, True
        engine = await self._started()
        try:
            completion = await engine.complete(request)
        except ModelRefusedError as error:
            completion = Completion(choices=[Choice(message=Message(refusal=str(error)), finish_reason="content_filter")])
        if completion.is_whole or completion.finish_reason in ("length", "content_filter"):  # asking again would give the same
            await asyncio.to_thread(self._cache.put, key, completion)
        return completion, False

    async def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            await asyncio.sleep(0)  # lets the connections close

    async def _started(self) -> OpenAIEngine:
        async with self._starting:
            if self._engine is None:
                try:
                    self._engine = await asyncio.to_thread(OpenAIEngine, self._config)
                except OutOfQuotaError:
                    raise
                except ModelServerError as error:
                    raise JobError(f"{self._config.name}: {error}") from None
            return self._engine


class APIScorer:
    """Uses a model and a pool; any number of `predict` calls may run at once, as many as `budget` has room for."""

    def __init__(self, name: str, model: APIModel, pool: DecodePool, task: Task, spec: VideoSpec, budget: FrameBudget) -> None:
        self._name = name
        self._model = model
        self._pool = pool
        self._task = task
        self._spec = spec
        self._budget = budget

    async def predict(self, example: Example) -> tuple[Prediction, APIAnswer]:
        """What the model says about `example`, and what that took. Raises what would meet every video only."""
        messages = self._task.question_messages(example.context)
        async with self._budget.place(self._spec) as place:
            try:
                clip = await self._pool.decode_async(example.uri, self._spec, example.start_s, example.end_s)
                place.hold(clip)
                completion, is_from_cache = await self._model.ask(clip, messages)
            except _FOR_ALL:
                raise
            except RBFTError as error:
                return _failed(example, error), APIAnswer(example.id, error_code=error.code)
        prediction = read_answer(self._name, completion, example, self._task)
        answer = APIAnswer(
            id=example.id,
            text=completion.text,
            finish_reason=completion.finish_reason or "unknown",
            num_input_tokens=completion.usage.prompt_tokens if completion.usage else None,
            num_output_tokens=completion.usage.num_output_tokens if completion.usage else None,
            served_model=completion.model,
            answered_s=completion.created,
            is_from_cache=is_from_cache,
            error_code=prediction.error_code,
        )
        return prediction, answer


def read_answer(name: str, completion: Completion, example: Example, task: Task) -> Prediction:
    """The prediction that `completion` is: by the strict parse of its text, and with probabilities where it tells the likely tokens.

    A refusal is the error row `model_refused`, which has the text and counts as wrong like every row without a label.
    """
    text = completion.text
    label = task.parse_label(text) if completion.choices[0].message.content else None
    if _declines(completion, label):
        error: RBFTError = ModelRefusedError(f"{name} declined to answer (finish_reason {completion.finish_reason}): {text[:200]}")
        return replace(_failed(example, error), generated=text or None)
    if not completion.is_whole:
        mend = "; raise max_new_tokens" if completion.finish_reason == "length" else ""
        return _failed(example, ModelServerError(f"{name} gave {completion.shortcoming}{mend}"))
    logprobs = completion.choices[0].logprobs
    tokens = (logprobs and logprobs.content) or []
    shares = label_shares(tokens, label, task.labels) if label else {}
    return Prediction(
        id=example.id,
        label=example.label,
        # What was written greedily was likely, also where its tokens do not say how much.
        predicted=max(shares, key=lambda each: shares[each]) if shares else label if tokens else None,
        probabilities=shares,
        generated=text,
        generated_label=label,
    )


def _declines(completion: Completion, label: str | None) -> bool:
    message = completion.choices[0].message
    if completion.finish_reason == "content_filter" or (message.refusal and not message.content):
        return True
    return label is None and is_refusal(completion.text)


def _failed(example: Example, error: RBFTError) -> Prediction:
    return Prediction(example.id, example.label, None, error_code=error.code, error_message=str(error))
