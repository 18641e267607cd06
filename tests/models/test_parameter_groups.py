"""Every parameter has one learning rate: its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import Trainer

from rbft.config import ModelPart, OptimiserConfig
from rbft.errors import TrainingError
from rbft.models.load import load_model
from rbft.models.parameter_groups import build_parameter_groups, check_parameter_groups, freeze_parts, part_of

OPTIMISER = OptimiserConfig()


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_model(model_folder, "float32")


@pytest.fixture
def groups(model: Any) -> list[dict[str, Any]]:
    return build_parameter_groups(model, OPTIMISER)


def group_of(model: Any, groups: list[dict[str, Any]], end: str) -> str:
    """The group of the one parameter whose name ends with `end`."""
    (parameter,) = (parameter for name, parameter in model.named_parameters() if name.endswith(end))
    (group,) = (group["name"] for group in groups if any(member is parameter for member in group["params"]))
    return str(group)


def test_every_parameter_is_in_exactly_one_group(model: Any, groups: list[dict[str, Any]]) -> None:
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("visual.patch_embed.proj.weight", "vision"),
        ("visual.blocks.0.attn.qkv.weight", "vision"),
        ("visual.blocks.1.attn.proj.bias", "vision_no_decay"),
        ("visual.blocks.0.norm1.weight", "vision_no_decay"),
        ("visual.merger.mlp.0.weight", "language"),
        ("visual.merger.mlp.2.bias", "language_no_decay"),
        ("visual.merger.ln_q.weight", "language_no_decay"),
        ("language_model.embed_tokens.weight", "language"),
        ("language_model.layers.0.self_attn.q_proj.weight", "language"),
        ("language_model.layers.0.self_attn.q_proj.bias", "language_no_decay"),
        ("language_model.layers.1.post_attention_layernorm.weight", "language_no_decay"),
        ("language_model.norm.weight", "language_no_decay"),
    ],
)
def test_the_merger_goes_with_the_language_model_and_norms_and_biases_without_decay(
    model: Any, groups: list[dict[str, Any]], end: str, expected: str
) -> None:
    assert group_of(model, groups, end) == expected


def test_each_group_has_the_rates_and_the_decay_of_the_paper(groups: list[dict[str, Any]]) -> None:
    assert {group["name"]: (group["peak_lr"], group["weight_decay"]) for group in groups} == {
        "language": (1e-5, 0.1),
        "language_no_decay": (1e-5, 0.0),
        "vision": (2e-6, 0.1),
        "vision_no_decay": (2e-6, 0.0),
    }


def test_a_dropped_parameter_is_named(model: Any, groups: list[dict[str, Any]]) -> None:
    dropped = groups[0]["params"].pop()
    name = next(name for name, parameter in model.named_parameters() if parameter is dropped)
    with pytest.raises(TrainingError, match=f"not in exactly one optimiser group: .*{name}"):
        check_parameter_groups(model, groups)


def test_a_doubled_parameter_is_named(model: Any, groups: list[dict[str, Any]]) -> None:
    doubled = groups[0]["params"][0]
    groups[1]["params"].append(doubled)
    name = next(name for name, parameter in model.named_parameters() if parameter is doubled)
    with pytest.raises(TrainingError, match=f"not in exactly one optimiser group: .*{name}"):
        check_parameter_groups(model, groups)


def test_a_parameter_of_another_model_is_noticed(model: Any, groups: list[dict[str, Any]]) -> None:
    groups[0]["params"].append(torch.nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(TrainingError, match="not in exactly one optimiser group"):
        check_parameter_groups(model, groups)


def test_which_parameters_decay_is_the_rule_of_the_hugging_face_trainer(model: Any, groups: list[dict[str, Any]]) -> None:
    # Their method looks at the model it is given and at nothing of the trainer.
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    decaying = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    ours = {name for name, parameter in model.named_parameters() if id(parameter) in decaying}
    names = {name for name, _ in model.named_parameters()}
    # What their patterns miss: RMSNorms called norm1, norm2 and ln_q. Qwen2-VL's are LayerNorms, which they know by class.
    missed = (
        {name for name in names if re.search(r"visual.*\.(norm1|norm2|ln_q)\.weight$", name)} if "2_5" in type(model).__name__ else set()
    )
    assert (len(missed) > 0) == ("2_5" in type(model).__name__)
    assert (ours, theirs & names) == (ours, ours | missed)
    assert ours and not any("norm" in name or name.endswith("bias") for name in ours)


# Freezing


@pytest.mark.parametrize("part", get_args(ModelPart))
def test_a_frozen_part_is_in_no_group_and_may_only_be_missing_if_it_is_frozen(model_folder: Path, part: ModelPart) -> None:
    model = load_model(model_folder, "float32")
    freeze_parts(model, [part])
    groups = build_parameter_groups(model, OPTIMISER, [part])
    members = {id(parameter) for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in members) == (part_of(name) != part), name
    assert any(part_of(name) == part for name, _ in model.named_parameters())
    assert ({"vision", "vision_no_decay"} <= {group["name"] for group in groups}) == (part != "vision")
    with pytest.raises(TrainingError, match=f"no trainable {part} parameters"):
        build_parameter_groups(model, OPTIMISER)
    with pytest.raises(TrainingError, match="should be frozen and has trainable parameters"):
        build_parameter_groups(model, OPTIMISER, get_args(ModelPart))


def test_a_model_without_a_vision_tower_is_refused() -> None:
    with pytest.raises(TrainingError, match="no trainable vision parameters"):
        build_parameter_groups(torch.nn.Linear(2, 2), OPTIMISER)
