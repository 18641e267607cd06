"""What training wrote, taken out of its run, answers alike in transformers and in vLLM, and otherwise than the model it began with."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from rbft.config import LoraConfig, ModelConfig
from rbft.engines.hf import HFEngine
from rbft.models.export import export_model
from rbft.video.pool import DecodePool
from tests.integration.both_engines import ENGINE, Engines
from tests.samples import TASK, write_video
from tests.tiny_models import make_tiny_model
from tests.training.stages import OPTIMISER, VIDEO, make_items, make_stage, make_training, run_stages
from tests.training.workers import run_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FASTER = OPTIMISER.model_copy(update={"lr_language": 1e-2, "lr_vision": 2e-3})


@pytest.mark.parametrize(("family", "lora"), [("qwen2_5_vl", LoraConfig(rank=4, alpha=16, vision="all")), ("qwen2_vl", None)])
def test_trained_exported_and_loaded_by_both_engines_the_likelihoods_are_the_same(
    tmp_path: Path, family: Literal["qwen2_5_vl", "qwen2_vl"], lora: LoraConfig | None
) -> None:
    base = make_tiny_model(tmp_path / "base", family)
    items = make_items([write_video(tmp_path / f"v{i}.mp4", seconds=4 + 2 * (i % 2), seed=i) for i in range(6)])
    spec = make_stage(base, tmp_path / "stage", make_training(2, 2, lora=lora), optimiser=FASTER)
    run_workers(run_stages, 2, [(spec, items)])
    export_model(str(tmp_path / "stage" / ("adapter" if lora else "final")), str(tmp_path / "exported"))

    with DecodePool(1) as pool:
        clips = [pool.decode(item.example.uri, VIDEO.spec()) for item in items[:3]]
    untrained = HFEngine(ModelConfig(path=str(base), dtype="float32"), VIDEO.spec())
    question, labels = TASK.question_messages(), TASK.labels
    before = [asyncio.run(untrained.score(clip, question, labels)) for clip in clips]
    untrained.close()
    engines = Engines(ModelConfig(path=str(tmp_path / "exported"), dtype="float32"), ENGINE, VIDEO.spec())
    try:
        for clip, by_base in zip(clips, before, strict=True):
            by_vllm, by_hf = engines.both("score", clip, question, labels)
            assert by_vllm == pytest.approx(by_hf, abs=2e-3)
            assert by_hf != pytest.approx(by_base, abs=0.1), "training changed what is asked here"
    finally:
        engines.close()
