"""Ways to have clips classified, behind one interface: our engines, and the peers they are held against in `benchmarks.evaluation`.

    ours        `VllmEngine.answer`, as the evaluation job asks it: the likelihood of every label, and the greedy text
    ours_hf     `HFEngine.answer`, the same from plain transformers
    llm         vLLM's offline class, given everything at once: generates the label, greedily
    async_llm   a bare `AsyncLLM` loop that does
    hf          transformers' forward passes over prompt and label, a row for every pair of video and label, in batches of equal length,
                as evaluation harnesses do; the processor works ahead in a thread

All get decoded clips, each round's others, and stay warm between rounds.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from rbft.config import RunConfig
from rbft.engines.base import Engine
from rbft.engines.hf import HFEngine
from rbft.engines.vllm import VllmEngine, engine_arguments
from rbft.models.chat import ChatAdapter
from rbft.records import Clip
from rbft.task import Message

_TIMEOUT_S = 600.0
Result = TypeVar("Result")
_HF_BATCH = 16
"""Videos in one forward pass; the quickest of 4, 8, 16 and 32 with the miniature."""


@dataclass(frozen=True)
class Case:
    """One size of the benchmark: what every contender is given."""

    name: str
    config: RunConfig
    clips: Sequence[Clip]
    context: str | None = None

    @property
    def messages(self) -> Sequence[Message]:
        return self.config.task.question_messages(self.context)

    @property
    def in_flight(self) -> int:
        """Clips that an engine has at a time, as in a job."""
        return 2 * self.config.engine.max_num_seqs

    def adapter(self) -> ChatAdapter:
        return ChatAdapter(self.config.model.path, self.config.video.spec())

    def round_clips(self, number: int) -> list[Clip]:
        """The clips, each with one pixel of its own in every round, so that no cache knows them from the one before."""
        return [_marked(clip, number) for clip in self.clips]


@dataclass(frozen=True)
class Told:
    """What a contender says about one clip."""

    label: str | None
    logprobs: dict[str, float] | None = None
    """Label -> log-likelihood, of those that score."""


class Contender(Protocol):
    """Built ready to begin."""

    def run(self, clips: Sequence[Clip]) -> list[Told]: ...

    def close(self) -> None: ...


class Ours:
    """One of our engines, asked about as many clips at a time as the job's actors ask it."""

    def __init__(self, case: Case, start: Callable[[], Engine]) -> None:
        self._case, self._loop = case, _Loop()
        self.engine: Engine = self._loop.call(_started(start))

    def run(self, clips: Sequence[Clip]) -> list[Told]:
        return self._loop.call(_for_each(clips, self._ask, self._case.in_flight))

    def close(self) -> None:
        self.engine.close()
        self._loop.close()

    async def _ask(self, clip: Clip) -> Told:
        config = self._case.config
        answer = await self.engine.answer(clip, self._case.messages, config.task.labels, config.evaluation.max_new_tokens)
        return Told(max(answer.logprobs, key=lambda label: answer.logprobs[label]), answer.logprobs)


def ours(case: Case) -> Contender:
    config = case.config
    return Ours(case, lambda: VllmEngine(config.model, config.engine, config.video.spec(), config.seed))


def ours_hf(case: Case) -> Contender:
    config = case.config
    return Ours(case, lambda: HFEngine(config.model, config.video.spec(), max_batch_size=config.engine.max_num_seqs))


class OfflineLLM:
    """`LLM.generate` once for all."""

    def __init__(self, case: Case) -> None:
        from vllm import LLM

        self._case, self._adapter = case, case.adapter()
        self._llm = LLM(**engine_arguments(case.config.model, case.config.engine, self._adapter, case.config.seed))
        self._params = _greedy(case, self._adapter)

    def run(self, clips: Sequence[Clip]) -> list[Told]:
        prompts = [self._adapter.vllm_prompt(clip, self._case.messages) for clip in clips]
        outputs = self._llm.generate(prompts, self._params, use_tqdm=False)
        return [_read(self._case, self._adapter, output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class BareAsyncLLM:
    """One request a clip."""

    def __init__(self, case: Case) -> None:
        self._case, self._adapter, self._loop = case, case.adapter(), _Loop()
        self._llm: Any = self._loop.call(self._start())
        self._params = _greedy(case, self._adapter)

    def run(self, clips: Sequence[Clip]) -> list[Told]:
        return self._loop.call(_for_each(clips, self._ask, self._case.in_flight))

    def close(self) -> None:
        self._llm.shutdown()
        self._loop.close()

    async def _start(self) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        config = self._case.config
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(config.model, config.engine, self._adapter, config.seed)))

    async def _ask(self, clip: Clip) -> Told:
        token_ids: Sequence[int] = ()
        prompt = self._adapter.vllm_prompt(clip, self._case.messages)
        async for output in self._llm.generate(prompt, self._params, request_id=uuid.uuid4().hex):
            token_ids = output.outputs[0].token_ids
        return _read(self._case, self._adapter, token_ids)


class HFForward:
    """Teacher-forced log-likelihoods by transformers alone: its processor, its model, no cache."""

    def __init__(self, case: Case) -> None:
        from rbft.models.load import load_model  # for its positions: transformers' own are not those that the model was trained with

        self._case, self._adapter = case, case.adapter()
        config = case.config.model
        self._model: Any = load_model(config.path, config.dtype, config.attention).eval()
        self._labels = case.config.task.labels
        self._prompt = self._adapter.prompt_text(case.messages)
        self._ahead = ThreadPoolExecutor(1)

    def run(self, clips: Sequence[Clip]) -> list[Told]:
        by_length = sorted(range(len(clips)), key=lambda index: clips[index].frames_THWC.nbytes)
        batches = [by_length[start : start + _HF_BATCH] for start in range(0, len(clips), _HF_BATCH)]
        told: dict[int, Told] = {}
        for batch, (inputs, answers) in zip(
            batches, self._inputs_ahead([[clips[index] for index in batch] for batch in batches]), strict=True
        ):
            for index, logprobs in zip(batch, self._forward(inputs, answers), strict=True):
                told[index] = Told(max(logprobs, key=lambda label: logprobs[label]), logprobs)
        return [told[index] for index in range(len(clips))]

    def close(self) -> None:
        self._ahead.shutdown()
        self._model = None

    def _inputs_ahead(self, batches: Sequence[Sequence[Clip]]) -> Iterator[Any]:
        """Inputs of each batch; those of the next are made meanwhile."""
        pending = self._ahead.submit(self._inputs, batches[0])
        for following in [*batches[1:], None]:
            ready = pending.result()
            if following is not None:
                pending = self._ahead.submit(self._inputs, following)
            yield ready

    def _inputs(self, clips: Sequence[Clip]) -> tuple[dict[str, Any], list[list[int]]]:
        """Model inputs of every pair of clip and label, a clip's pairs together; each label's tokens."""
        adapter = self._adapter
        end = adapter.tokenizer.decode([adapter.end_token_id])
        inputs = adapter.processor(
            text=[f"{self._prompt}{label}{end}" for _ in clips for label in self._labels],
            videos=[clip.frames_THWC for clip in clips for _ in self._labels],
            video_metadata=[adapter.video_metadata(clip) for clip in clips for _ in self._labels],
            do_sample_frames=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **adapter.video_kwargs,
        )
        return dict(inputs), [adapter.answer_ids(label) for label in self._labels]

    def _forward(self, inputs: dict[str, Any], answers: list[list[int]]) -> Iterator[dict[str, float]]:
        """Label -> log-likelihood, clip by clip."""
        import torch

        longest = max(map(len, answers))
        with torch.inference_mode():
            logits = self._model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits
            logprobs = torch.log_softmax(logits.float(), dim=-1)
        for start in range(0, len(logprobs), len(answers)):
            scores = {}
            for label, tokens, row in zip(self._labels, answers, logprobs[start : start + len(answers)], strict=True):
                predicted = row[-len(tokens) - 1 : -1]
                scores[label] = float(predicted.gather(1, torch.tensor(tokens)[:, None]).double().sum())
            yield scores


def _marked(clip: Clip, number: int) -> Clip:
    frames = clip.frames_THWC.copy()
    frames[0, 0, 0] = (number, 0, 0)
    return replace(clip, frames_THWC=frames)


def _greedy(case: Case, adapter: ChatAdapter) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=case.config.evaluation.max_new_tokens,
        temperature=0.0,
        stop_token_ids=[adapter.end_token_id],
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _read(case: Case, adapter: ChatAdapter, token_ids: Sequence[int]) -> Told:
    return Told(case.config.task.parse_label(adapter.decode(token_ids)))


class _Loop:
    """An event loop in a thread, as an actor has one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_TIMEOUT_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _started(start: Callable[[], Engine]) -> Engine:
    return start()


async def _for_each(clips: Sequence[Clip], ask: Callable[[Clip], Coroutine[Any, Any, Told]], in_flight: int) -> list[Told]:
    room = asyncio.Semaphore(in_flight)

    async def one(clip: Clip) -> Told:
        async with room:
            return await ask(clip)

    return list(await asyncio.gather(*map(one, clips)))
