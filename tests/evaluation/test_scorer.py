"""Videos to predictions, by a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbft.config import MaskingConfig, ModelConfig
from rbft.engines.base import Sampling
from rbft.engines.hf import HFEngine
from rbft.evaluation.looking.masking import Masker
from rbft.evaluation.looking.sources import SaliencyBoxes
from rbft.evaluation.scorer import Scorer
from rbft.records import Example, Prediction
from rbft.video.budget import FrameBudget
from rbft.video.pool import DecodePool
from tests.samples import SPEC, TASK, write_video
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2_5_vl")
    return HFEngine(ModelConfig(path=str(folder), dtype="float32"), SPEC, device="cpu")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good.mp4 and corrupt.mp4, and no missing.mp4."""
    folder = tmp_path_factory.mktemp("videos")
    good = write_video(folder / "good.mp4")
    (folder / "corrupt.mp4").write_bytes(good.read_bytes()[:200])
    return folder


def predict_all(engine: HFEngine, pool: DecodePool, examples: list[Example], masker: Masker | None = None) -> list[Prediction]:
    async def predict() -> list[Prediction]:
        scorer = Scorer(engine, pool, TASK, SPEC, max_new_tokens=4, budget=FrameBudget(2, 1 << 30), masker=masker)
        return list(await asyncio.gather(*(scorer.predict(example) for example in examples)))

    return asyncio.run(predict())


def test_a_good_video_is_given_its_most_likely_label(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    example = Example("good", str(videos / "good.mp4"), label="normal", context="Camera 3.")
    (prediction,) = predict_all(engine, pool, [example])
    clip = pool.decode(example.uri, SPEC)
    logprobs = asyncio.run(engine.score(clip, TASK.question_messages("Camera 3."), TASK.labels))
    assert prediction.logprobs == pytest.approx(logprobs, abs=1e-5)
    assert (prediction.id, prediction.label, prediction.error_code) == ("good", "normal", None)
    assert prediction.predicted == max(TASK.labels, key=lambda label: logprobs[label])
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
    generated = asyncio.run(engine.generate(clip, TASK.question_messages("Camera 3."), Sampling(4)))
    assert prediction.generated == generated.text
    assert prediction.generated_label == TASK.parse_label(generated.text)


def test_bad_videos_become_rows_with_their_label_and_their_code(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    examples = [Example(name, str(videos / f"{name}.mp4"), label="abnormal") for name in ("missing", "corrupt", "good")]
    missing, corrupt, good = predict_all(engine, pool, examples)
    assert [row.error_code for row in (missing, corrupt, good)] == ["video_missing", "video_decode", None]
    for row in (missing, corrupt):
        assert (row.label, row.predicted, row.probabilities, row.generated) == ("abnormal", None, {}, None)
        assert str(videos / f"{row.id}.mp4") in str(row.error_message)


def test_with_a_masker_the_engine_sees_the_clip_behind_its_masks(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    example = Example("good", str(videos / "good.mp4"), label="normal")
    masker = Masker(SaliencyBoxes(), MaskingConfig(fill="black"), "random")
    masked = asyncio.run(masker.mask("good", pool.decode(example.uri, SPEC)))
    assert masked.share > 0
    (prediction,) = predict_all(engine, pool, [example], masker)
    assert prediction.masked_share == masked.share
    assert prediction.logprobs == pytest.approx(asyncio.run(engine.score(masked.clip, TASK.question_messages(), TASK.labels)), abs=1e-5)
    assert prediction.logprobs != predict_all(engine, pool, [example])[0].logprobs
