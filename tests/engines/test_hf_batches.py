"""What the engine answers in a batch is what it answers alone; what fails, fails alone."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rbft.config import ModelConfig, load_config
from rbft.engines.base import Answer, Sampling
from rbft.engines.batching import Request
from rbft.engines.hf import HFEngine
from rbft.errors import EngineError, EngineGoneError, ModelError
from rbft.models.chat import EncodedSample
from rbft.records import Clip
from rbft.task import Message
from tests.samples import SPEC, TASK, random_clip
from tests.tiny_models import make_tiny_model

LABELS = ("normal", "not normal", "abnormal", "no")
CLIPS = [
    random_clip(8, height=84, width=84, seed=0),
    random_clip(4, height=56, width=84, fps=2.0, seed=1),
    random_clip(6, height=28, width=56, fps=0.5, seed=2),
    random_clip(10, height=84, width=56, fps=0.9, seed=3),
]
"""Of different sizes and rates; with prompts of different lengths, every row of a batch has its own grid, padding and positions."""
MESSAGES = [TASK.question_messages(), TASK.rationale_messages(), TASK.question_messages("Camera 3."), TASK.question_messages()]
QUESTIONS = list(zip(CLIPS, MESSAGES, strict=True))

Asked = Coroutine[Any, Any, Any]


class GatedEngine(HFEngine):
    """Counts its batches and the texts it had to write. While `gate` is closed, a batch waits there, and the next one grows behind it."""

    def __init__(self, folder: Path) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batch_sizes: list[int] = []
        self.num_written = 0
        super().__init__(ModelConfig(path=str(folder), dtype="float32"), SPEC, device="cpu")

    def _run(self, batch: Sequence[Request]) -> None:
        self.batch_sizes.append(len(batch))
        assert self.gate.wait(timeout=60)
        super()._run(batch)

    def _write(self, requests: Sequence[Request], sampling: Sampling) -> None:
        self.num_written += len(requests)
        super()._write(requests, sampling)

    async def one_at_the_gate_and_behind_it(self, asked: Sequence[Asked]) -> tuple[asyncio.Task[Any], list[asyncio.Task[Any]]]:
        """Some request that the worker has taken, and all of `asked`, which wait in its queue."""
        self.gate.clear()
        self.batch_sizes.clear()
        first = asyncio.create_task(self.score(*QUESTIONS[0], LABELS[:1]))
        async with asyncio.timeout(60):
            while not self.batch_sizes:
                await asyncio.sleep(0.01)
            others = [asyncio.create_task(one) for one in asked]
            while len(self._queue._waiting) + sum(task.done() for task in others) < len(others):
                await asyncio.sleep(0.01)
        return first, others

    async def in_one_batch(self, asked: Sequence[Asked]) -> list[Any]:
        """What comes of `asked`, served together: results and exceptions."""
        first, others = await self.one_at_the_gate_and_behind_it(asked)
        self.gate.set()
        return (await asyncio.gather(first, *others, return_exceptions=True))[1:]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedEngine]:
    engine = GatedEngine(make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def miniature(repository: Path) -> Iterator[GatedEngine]:
    """A model that has learnt to answer: about some clips with a label, about others not."""
    engine = GatedEngine(repository / "miniature" / "model")
    yield engine
    engine.close()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[GatedEngine]:
    """An engine of the test's own."""
    engine = GatedEngine(make_tiny_model(tmp_path / "model"))
    yield engine
    engine.close()


def test_likelihoods_of_a_batch_are_those_of_requests_alone(engine: GatedEngine) -> None:
    together = asyncio.run(engine.in_one_batch([engine.score(*question, LABELS) for question in QUESTIONS]))
    assert engine.batch_sizes == [1, len(QUESTIONS)]
    for question, scores in zip(QUESTIONS, together, strict=True):
        assert scores == pytest.approx(asyncio.run(engine.score(*question, LABELS)), rel=1e-5)


def test_greedy_texts_of_a_batch_are_those_of_requests_alone_and_each_ends_at_its_own_length(engine: GatedEngine) -> None:
    samplings = [Sampling(length) for length in (12, 3, 20, 7)]
    asked = list(zip(QUESTIONS, samplings, strict=True))
    together = asyncio.run(engine.in_one_batch([engine.generate(*question, sampling) for question, sampling in asked]))
    assert engine.batch_sizes == [1, len(QUESTIONS)]
    assert together == [asyncio.run(engine.generate(*question, sampling)) for question, sampling in asked]
    assert len({text.text for text in together}) > 1


def test_long_greedy_texts_of_a_batch_are_those_of_requests_alone(miniature: GatedEngine, repository: Path) -> None:
    task = load_config(repository / "configs" / "miniature.yaml").task
    asked = [(clip, task.rationale_messages(context), Sampling(40)) for clip in CLIPS for context in (None, "Camera 3.")]
    together = asyncio.run(miniature.in_one_batch([miniature.generate(*question) for question in asked]))
    assert miniature.batch_sizes == [1, len(asked)]
    assert together == [asyncio.run(miniature.generate(*question)) for question in asked]
    assert len({text.text for text in together if text.num_tokens > 20}) > 2


def test_drawn_text_depends_on_its_seed_only_also_in_a_batch(engine: GatedEngine) -> None:
    samplings = [Sampling(8, temperature=5.0, seed=seed) for seed in (1, 2, 1)]
    asked = [engine.generate(*QUESTIONS[1], sampling) for sampling in samplings]
    one, other, again, _ = asyncio.run(engine.in_one_batch([*asked, engine.generate(*QUESTIONS[0], Sampling(4))]))
    assert engine.batch_sizes == [1, 4]
    assert one == again == asyncio.run(engine.generate(*QUESTIONS[1], samplings[0]))
    assert other != one


def score_then_generate(engine: HFEngine, question: tuple[Clip, Sequence[Message]], max_new_tokens: int) -> Answer:
    async def ask() -> Answer:
        return Answer(await engine.score(*question, LABELS), await engine.generate(*question, Sampling(max_new_tokens)))

    return asyncio.run(ask())


@pytest.mark.parametrize("max_new_tokens", [1, 2, 12])
def test_an_answer_is_the_score_and_the_greedy_text_and_writes_only_what_is_no_label(miniature: GatedEngine, max_new_tokens: int) -> None:
    expected = [score_then_generate(miniature, question, max_new_tokens) for question in QUESTIONS]
    miniature.num_written = 0
    together = asyncio.run(miniature.in_one_batch([miniature.answer(*question, LABELS, max_new_tokens) for question in QUESTIONS]))
    for answer, apart in zip(together, expected, strict=True):
        assert answer.generated == apart.generated
        assert answer.logprobs == pytest.approx(apart.logprobs, rel=1e-5)
    beginnings = [miniature.adapter.decode(miniature.adapter.answer_ids(label)[:max_new_tokens]) for label in LABELS]
    num_other = sum(apart.generated.text not in beginnings for apart in expected)
    assert num_other < len(QUESTIONS)
    assert num_other > 0 or max_new_tokens == 1  # every text may begin like a label
    assert miniature.num_written == num_other


def test_an_answer_of_which_no_label_is_the_greedy_text_is_written(engine: GatedEngine) -> None:
    expected = [score_then_generate(engine, question, 5) for question in QUESTIONS]
    engine.num_written = 0
    for question, apart in zip(QUESTIONS, expected, strict=True):
        answer = asyncio.run(engine.answer(*question, LABELS, 5))
        assert answer.generated == apart.generated
        assert answer.generated.text not in LABELS
        assert answer.logprobs == pytest.approx(apart.logprobs, rel=1e-5)
    assert engine.num_written == len(QUESTIONS)


def test_a_request_that_the_model_fails_on_fails_alone(engine: GatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its video has fewer patches than its prompt has places for."""
    encode = engine.adapter.encode

    def broken(clip: Clip, messages: Sequence[Message], answer: str | None = None) -> EncodedSample:
        sample = encode(clip, messages, answer)
        shorter = {"frames_THWC": sample.frames_THWC[:-2], "grid_thw": sample.grid_thw - torch.tensor([1, 0, 0])}
        return dataclasses.replace(sample, **shorter) if clip is CLIPS[1] else sample

    monkeypatch.setattr(engine.adapter, "encode", broken)
    results = asyncio.run(engine.in_one_batch([engine.answer(*question, LABELS, 4) for question in QUESTIONS]))
    monkeypatch.undo()
    assert engine.batch_sizes[:2] == [1, len(QUESTIONS)]
    assert isinstance(results[1], EngineError)
    assert not isinstance(results[1], EngineGoneError)
    for row in (0, 2, 3):
        assert results[row].generated == score_then_generate(engine, QUESTIONS[row], 4).generated


def test_a_conversation_without_a_video_is_refused_and_the_others_are_answered(engine: GatedEngine) -> None:
    blind = [{"role": "user", "content": "Is this video normal?"}]
    refused, scores = asyncio.run(engine.in_one_batch([engine.score(CLIPS[0], blind, LABELS), engine.score(*QUESTIONS[1], LABELS)]))
    assert isinstance(refused, ModelError)
    assert scores == pytest.approx(asyncio.run(engine.score(*QUESTIONS[1], LABELS)), rel=1e-5)


def test_a_request_given_up_while_it_waits_is_not_computed(engine: GatedEngine) -> None:
    async def give_up_the_first() -> list[Any]:
        first, others = await engine.one_at_the_gate_and_behind_it([engine.score(*question, LABELS) for question in QUESTIONS])
        await asyncio.sleep(0.2)
        others[0].cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)

    cancelled, *scores = asyncio.run(give_up_the_first())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert all(set(row) == set(LABELS) for row in scores)
    assert engine.batch_sizes == [1, len(QUESTIONS) - 1]


def test_closing_answers_the_batch_under_way_and_refuses_the_rest_and_all_that_comes_later(mortal: GatedEngine) -> None:
    async def close_while_requests_wait() -> None:
        first, others = await mortal.one_at_the_gate_and_behind_it([mortal.score(*question, LABELS) for question in QUESTIONS])
        closing = asyncio.create_task(asyncio.to_thread(mortal.close))
        refused = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), timeout=60)
        assert [type(error) for error in refused] == [EngineGoneError] * len(QUESTIONS)
        mortal.gate.set()
        assert set(await first) == set(LABELS[:1])
        await closing
        with pytest.raises(EngineGoneError):
            await mortal.score(*QUESTIONS[0], LABELS)
        with pytest.raises(EngineGoneError):
            await mortal.check_health()

    asyncio.run(close_while_requests_wait())
    assert not mortal._worker.is_alive()
    mortal.close()


def test_a_lost_device_takes_the_engine_with_it(mortal: GatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one error that we cannot cause here: after it, CUDA refuses everything this process asks."""

    def lost(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(mortal._model.model, "forward", lost)
    results = asyncio.run(mortal.in_one_batch([mortal.score(*question, LABELS) for question in QUESTIONS[1:]]))
    assert [type(error) for error in results] == [EngineGoneError] * 3
    with pytest.raises(EngineGoneError, match="illegal memory access"):
        asyncio.run(mortal.check_health())
