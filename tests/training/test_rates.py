"""Groups that an engine lost, merged or changed are found before they train anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rbft.config import OptimiserConfig, TrainingConfig
from rbft.errors import TrainingError
from rbft.models.load import load_model
from rbft.models.parameter_groups import build_parameter_groups
from rbft.training.deepspeed_engine import check_rates

OPTIMISER = OptimiserConfig()


@pytest.fixture
def engine(tiny_model: Path) -> Any:
    """What `check_rates` looks at in a DeepSpeed engine, as it should be."""
    model = load_model(tiny_model, "float32")
    return SimpleNamespace(module=model, optimizer=torch.optim.AdamW(build_parameter_groups(model, OPTIMISER)))


def merge_the_last_two(groups: list[dict[str, Any]]) -> None:
    groups[-2]["params"] += groups.pop()["params"]


def lose_a_rate(groups: list[dict[str, Any]]) -> None:
    del groups[0]["peak_lr"]


def double_one(groups: list[dict[str, Any]]) -> None:
    groups.append(groups[0])


SPOILED: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "merged": merge_the_last_two,
    "missing": lambda groups: groups.clear(),
    "doubled": double_one,
    "without a rate": lose_a_rate,
    "without a name": lambda groups: groups[1].pop("name"),
    "another rate": lambda groups: groups[2].update(peak_lr=OPTIMISER.lr_language),
    "no decay": lambda groups: groups[0].update(weight_decay=0.0),
    "decay on norms": lambda groups: groups[1].update(weight_decay=OPTIMISER.weight_decay),
}


@pytest.mark.parametrize("how", SPOILED)
def test_groups_that_are_not_what_they_were_are_refused(engine: Any, how: str) -> None:
    check_rates(engine, TrainingConfig(), OPTIMISER)
    SPOILED[how](engine.optimizer.param_groups)
    with pytest.raises(TrainingError, match=r"lost a parameter group, .*they should be: \(language, 1e-05, 0\.1\), "):
        check_rates(engine, TrainingConfig(), OPTIMISER)


def test_groups_of_a_partitioned_model_are_those_of_the_whole_one(engine: Any) -> None:
    """ZeRO-3 leaves each rank tensors of one dimension, and what they were in `ds_shape`."""
    for parameter in engine.module.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = parameter.data.new_empty(0)
    check_rates(engine, TrainingConfig(), OPTIMISER)
