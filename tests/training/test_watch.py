"""A loss or gradient that is no number on one of two ranks ends the stage on both, by name; a loss that jumps is told and goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rbft.data.samples import TrainingItem
from rbft.errors import TrainingError
from rbft.training import loop
from rbft.training.checkpoints import complete_checkpoints
from rbft.training.deepspeed_engine import build_engine
from rbft.training.stage import StageSpec
from rbft.training.watch import NUM_NEEDED, SpikeWatch
from tests.training.stages import log_lines, make_items, make_stage, make_training
from tests.training.workers import run_workers

STAGES = {f"ZeRO-{stage}, {precision}": (stage, precision) for stage, precision in ((0, "fp32"), (2, "fp32"), (2, "bf16"), (3, "bf16"))}


def poisoned_stages(stages: dict[str, tuple[StageSpec, list[TrainingItem]]]) -> dict[str, str]:
    """Case -> what `run_stage` raised on this rank. In those named "gradient" rank 1's vision tower has a gradient of NaN at step 3."""
    found = {}
    for name, (spec, items) in stages.items():
        poison = _poison_gradient if "gradient" in name else build_engine
        with mock.patch.object(loop, "build_engine", poison):
            try:
                loop.run_stage(spec, items)
                found[name] = "nothing"
            except TrainingError as error:
                found[name] = str(error)
    return found


def _poison_gradient(*arguments: Any) -> deepspeed.DeepSpeedEngine:
    engine = build_engine(*arguments)
    backward, steps = engine.backward, iter(range(99))

    def poisoned_backward(loss: torch.Tensor, **others: object) -> None:
        # NaN x 0: the loss is what it was, its gradient is not.
        is_poisoned = next(steps) == 2 and torch.distributed.get_rank() == 1
        backward(_NanGradient.apply(loss) if is_poisoned else loss, **others)

    engine.backward = poisoned_backward
    return engine


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: object, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.nan


@pytest.fixture(scope="module")
def cases(
    tiny_model: Path, videos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[StageSpec, list[TrainingItem]]]:
    """Six items in batches of four on two ranks, one sample a micro-batch."""
    folder = tmp_path_factory.mktemp("poisoned")
    items = make_items(videos)
    # A sample whose loss is infinite: the one at place 1 of the first batch, so that rank 1 meets it.
    stages: dict[str, tuple[StageSpec, list[TrainingItem]]] = {}
    for name, (zero_stage, precision) in STAGES.items():
        training = make_training(2, 2, zero_stage=zero_stage, checkpoint_every_steps=1).model_copy(update={"precision": precision})
        stages[f"gradient, {name}"] = (make_stage(tiny_model, folder / f"gradient {name}", training), items)
    training = make_training(2, 1, checkpoint_every_steps=1)
    infinite = [replace(item, weight=math.inf) if item.example.id == "v3" else item for item in items]
    stages["loss"] = (make_stage(tiny_model, folder / "loss", training), infinite)
    spike = make_stage(tiny_model, folder / "spike", training, epochs=1)
    Path(spike.folder).mkdir()
    usual = [json.dumps({"step": 0, "loss": 0.01})] * NUM_NEEDED
    (Path(spike.folder) / "log.jsonl").write_text("\n".join(usual) + "\n")
    stages["spike"] = (spike, items)
    return stages


@pytest.fixture(scope="module")
def raised(cases: dict[str, tuple[StageSpec, list[TrainingItem]]]) -> list[dict[str, str]]:
    """What each rank found; all of it in one start of two workers, so a rank that hangs hangs the test."""
    found: list[dict[str, str]] = run_workers(poisoned_stages, 2, cases)
    return found


def test_an_infinite_loss_on_one_rank_ends_the_stage_on_both_and_names_the_batch(
    cases: dict[str, tuple[StageSpec, list[TrainingItem]]], raised: list[dict[str, str]]
) -> None:
    first, second = (rank["loss"] for rank in raised)
    assert first == second
    assert "the loss is NaN or infinite at step" in first and "v3" in first
    assert first.count("rank ") == 1, "only the rank on which it happened"
    assert "leave those at fault out of the manifest" in first


@pytest.mark.parametrize("name", STAGES)
def test_a_gradient_of_nan_on_one_rank_ends_the_stage_on_both_before_a_checkpoint(
    cases: dict[str, tuple[StageSpec, list[TrainingItem]]], raised: list[dict[str, str]], name: str
) -> None:
    case = f"gradient, {name}"
    first, second = (rank[case] for rank in raised)
    spec, items = cases[case]
    assert first == second and "the gradient is NaN or infinite at step 3" in first
    assert {"rank 0: ", "rank 1: "} <= {part for part in ("rank 0: ", "rank 1: ") if part in first}
    assert sum(item.example.id in first for item in items) == 4
    kept = complete_checkpoints(Path(spec.folder) / "checkpoints")
    assert [path.name for path in kept] == ["step-00000001", "step-00000002"]
    assert all(line["grad_norm"] > 0 for line in log_lines(spec)) and len(log_lines(spec)) == 2


def test_a_spike_is_told_with_its_ids_and_training_goes_on(
    cases: dict[str, tuple[StageSpec, list[TrainingItem]]], raised: list[dict[str, str]]
) -> None:
    assert [rank["spike"] for rank in raised] == ["nothing", "nothing"]
    spec, items = cases["spike"]
    told = [line for line in log_lines(spec) if line["step"] > 0]
    assert told[0]["spike"] is True and set(told[0]["spike_ids"]) < {item.example.id for item in items}
    assert len(told[0]["spike_ids"]) == 4, "of both ranks"
    assert (Path(spec.folder) / "final").is_dir()


def test_what_is_usual_is_no_spike_and_six_deviations_more_are() -> None:
    watch = SpikeWatch()
    # Median 1.0, median absolute deviation 0.1: the limit is 1 + 6 x 0.14826.
    assert not any(watch.is_spike(loss) for loss in [0.9, 1.0, 1.1] * 10)
    assert not watch.is_spike(1.88)
    assert watch.is_spike(1.90)


def test_too_few_losses_say_nothing() -> None:
    watch = SpikeWatch([0.1] * (NUM_NEEDED - 1))
    assert not watch.is_spike(50.0)


@given(st.lists(st.floats(0.1, 10.0), min_size=NUM_NEEDED, max_size=60), st.floats(0.01, 100.0))
def test_what_is_a_spike_does_not_depend_on_the_unit(losses: list[float], unit: float) -> None:
    first, second = SpikeWatch(losses), SpikeWatch([loss * unit for loss in losses])
    for loss in (0.05, 3.0, 1000.0):
        assert first.is_spike(loss) == second.is_spike(loss * unit)


def test_a_loss_that_stays_high_becomes_usual() -> None:
    watch = SpikeWatch([1.0] * 50)
    found = [watch.is_spike(5.0) for _ in range(40)]
    assert found[0] and not found[-1]
