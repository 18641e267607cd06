"""vLLM as the service uses it: text while it is written, ended when nobody reads it, and labels before texts."""

import asyncio
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from rbft.config import RunConfig, load_config
from rbft.engines.base import Generated, Sampling
from rbft.engines.vllm import VllmEngine
from rbft.records import Clip
from rbft.video.decode import decode
from tests.serve.samples import write_clip

pytestmark = pytest.mark.timeout(300)

NUM_SLOTS = 4


@pytest.fixture(scope="module")
def config(repository: Path) -> RunConfig:
    return load_config(repository / "configs" / "miniature.yaml", [f"engine.max_num_seqs={NUM_SLOTS}"])


def test_text_comes_piece_by_piece_ends_with_its_reader_and_lets_labels_pass(config: RunConfig, tmp_path: Path) -> None:
    """In one engine, as a start takes half a minute."""
    clip = decode(write_clip(tmp_path / "clip.mp4", seconds=8), config.video.spec())

    async def scenario() -> None:
        engine = VllmEngine(config.model, config.engine, config.video.spec())
        try:
            await _is_written_piece_by_piece(engine, config, clip)
            await _ends_with_its_reader(engine, config, clip)
            await _lets_labels_pass(engine, config, clip)
        finally:
            engine.close()

    asyncio.run(scenario())


async def _is_written_piece_by_piece(engine: VllmEngine, config: RunConfig, clip: Clip) -> None:
    messages, sampling = config.task.rationale_messages(), Sampling(config.generation.max_new_tokens)
    await engine.score(clip, config.task.question_messages(), config.task.labels)
    texts = [written async for written in engine.stream(clip, messages, sampling)]
    whole = await engine.generate(clip, messages, sampling)
    assert len(texts) > 10
    for earlier, later in pairwise(texts):
        assert later.text.startswith(earlier.text)
    assert (texts[-1].text, texts[-1].num_tokens, texts[-1].finish_reason) == (whole.text, whole.num_tokens, whole.finish_reason)
    # What both prompts begin with, the video above all, was there already.
    assert texts[0].num_cached_tokens >= config.engine.block_size  # type: ignore[operator]


async def _ends_with_its_reader(engine: VllmEngine, config: RunConfig, clip: Clip) -> None:
    messages, endless = config.task.rationale_messages(), Sampling(300)
    async with aclosing(engine.stream(clip, messages, endless)) as texts:
        await anext(texts)
        assert _num_unfinished(engine) == 1
    assert _num_unfinished(engine) == 0

    job = asyncio.ensure_future(engine.generate(clip, messages, endless))
    while not _num_unfinished(engine):
        await asyncio.sleep(0.001)
    job.cancel()
    await asyncio.wait([job])
    assert job.cancelled() and _num_unfinished(engine) == 0


async def _lets_labels_pass(engine: VllmEngine, config: RunConfig, clip: Clip) -> None:
    messages, sampling = config.task.rationale_messages(), Sampling(config.generation.max_new_tokens)
    ended_at: list[float] = []

    async def write() -> Generated:
        text = await engine.generate(clip, messages, sampling)
        ended_at.append(monotonic())
        return text

    texts = [asyncio.ensure_future(write()) for _ in range(5 * NUM_SLOTS)]
    while _num_unfinished(engine) < len(texts):
        await asyncio.sleep(0.001)
    await engine.score(clip, config.task.question_messages(), config.task.labels)
    num_before = len(ended_at)
    await asyncio.gather(*texts)
    # Those that ran already go on; of those that waited, a few slip in between the reads of a label. In turn, all would have gone first.
    assert num_before <= 3 * NUM_SLOTS


def _num_unfinished(engine: VllmEngine) -> int:
    llm: Any = engine._llm
    return int(llm.output_processor.get_num_unfinished_requests())
