"""How validation gets at its videos: decoded once, sent as uint8, in the rows that training makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from rbft.config import TrainingConfig
from rbft.data.samples import TrainingItem
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Example
from rbft.training.deepspeed_engine import build_engine
from rbft.training.stage import StageSpec
from rbft.training.validation import Validation, validate
from rbft.video.pool import DecodePool
from tests.samples import TASK
from tests.training.stages import OPTIMISER, VIDEO, make_stage, make_training
from tests.training.workers import run_workers

LABELS = ("normal", "abnormal", "normal")


def score_twice(spec: StageSpec) -> tuple[list[Validation], list[dict[str, Any]]]:
    """Two validations by the same weights, the second without a decoder; and what each forward was given."""
    adapter = ChatAdapter(spec.model.path, VIDEO.spec())
    engine = build_engine(load_model(spec.model.path, "float32"), spec.training, OPTIMISER, adapter.patches)
    given: list[dict[str, Any]] = []
    engine.module.register_forward_pre_hook(lambda _module, _inputs, kwargs: given.append(kwargs), with_kwargs=True)
    found = [validate(engine, adapter, spec, 1)]
    with mock.patch.object(DecodePool, "decode", side_effect=AssertionError("decoded again")):
        found.append(validate(engine, adapter, spec, 1))
    engine.destroy()
    return found, given


@pytest.fixture(scope="module")
def held_out(videos: list[Path]) -> tuple[TrainingItem, ...]:
    return tuple(
        TrainingItem(Example(f"h{i}", str(video), label), TASK.question_messages(), label)
        for i, (video, label) in enumerate(zip(videos, LABELS, strict=False))
    )


def test_a_video_is_decoded_once_and_travels_as_uint8_a_forward_a_label(
    tiny_model: Path, held_out: tuple[TrainingItem, ...], tmp_path: Path
) -> None:
    def spec(training: TrainingConfig) -> StageSpec:
        training = training.model_copy(update={"clip_cache_folder": str(tmp_path / training.batching)})
        return make_stage(tiny_model, tmp_path, training, validation=held_out)

    scores = {}
    for batching in ("packed", "padded"):
        ((found, given),) = run_workers(score_twice, 1, spec(make_training(1, 2, batching=batching)))
        first, second = found
        assert first == second and first.scores["coverage"] == 1.0
        assert len(list((tmp_path / batching).rglob("*.clip"))) == len(held_out)
        assert len(given) == 2 * len(held_out) * len(TASK.labels)
        assert all(each["frames"].dtype == torch.uint8 and "pixel_values_videos" not in each for each in given)
        assert all(("attention_mask" in each) == (batching == "padded") for each in given)
        scores[batching] = first.scores
    assert scores["packed"] == pytest.approx(scores["padded"], abs=1e-4)
