"""Every recipe in configs/deepspeed on two workers: the rates arrive and the weights move at them; fp32 masters, LoRA, freezing, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from deepspeed.ops.op_builder import AsyncIOBuilder

from rbft.config import TrainingConfig, load_config
from rbft.models.parameter_groups import part_of
from rbft.models.shape import read_model_shape
from rbft.training.memory import SampleSize, training_memory
from tests.training.engines import STEADY, adapter_steps, each, engine_bytes, first_step, many_small_steps
from tests.training.stages import make_items, make_training
from tests.training.workers import run_workers

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RECIPES = {path.stem: path for path in sorted((CONFIGS / "deepspeed").glob("*.yaml"))}
LORA = {"rank": 4, "vision": "all"}

Looks = list[dict[str, Any]]
"""What each rank found, by case."""


def training_of(deepspeed: dict[str, Any], **others: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({**make_training(2, 2).model_dump(), "deepspeed": deepspeed, **others})


def zero(stage: int, **others: Any) -> TrainingConfig:
    return training_of({"zero_optimization": {"stage": stage}}, **others)


def recipe(name: str, disk: Path, **others: Any) -> TrainingConfig:
    """The recipe as it is, but for the disk that a site names."""
    deepspeed = yaml.safe_load(RECIPES[name].read_text())
    for offload in ("offload_optimizer", "offload_param"):
        if "nvme_path" in deepspeed["zero_optimization"].get(offload, {}):
            deepspeed["zero_optimization"][offload]["nvme_path"] = str(disk)
    return training_of(deepspeed, **others)


@pytest.fixture(scope="module")
def looks(tiny_model: Path, videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Looks:
    disk = tmp_path_factory.mktemp("disk")
    cases = {
        "zero1 bf16": (first_step, recipe("zero1", disk, precision="bf16")),
        "zero3 fp32": (first_step, recipe("zero3", disk)),
        "masters zero2": (many_small_steps, zero(2, precision="bf16")),
        "lora zero2": (adapter_steps, zero(2, lora=LORA)),
        "lora without checkpointing": (adapter_steps, zero(2, lora=LORA, gradient_checkpointing=False)),
        "lora zero3": (adapter_steps, zero(3, lora=LORA)),
        "bytes zero3 bf16": (engine_bytes, zero(3, precision="bf16")),
        "bytes lora zero2": (engine_bytes, zero(2, lora=LORA)),
    }
    return run_workers(each, 2, tiny_model, make_items(videos)[:4], cases)


@pytest.fixture(scope="module")
def slow_looks(tiny_model: Path, videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Looks:
    disk = tmp_path_factory.mktemp("disk")
    cases: dict[str, Any] = {
        f"{name} {precision}": (first_step, recipe(name, disk, precision=precision)) for name in RECIPES for precision in ("fp32", "bf16")
    }
    cases |= {f"masters zero{stage}": (many_small_steps, zero(stage, precision="bf16")) for stage in (1, 3)}
    cases |= {
        "lora zero0": (adapter_steps, zero(0, lora=LORA)),
        "lora zero1": (adapter_steps, zero(1, lora=LORA)),
        "lora language": (adapter_steps, zero(2, lora={"rank": 4})),
        "frozen zero0": (adapter_steps, zero(0, freeze=["vision"])),
        "frozen zero2": (adapter_steps, zero(2, freeze=["language", "embeddings"])),
        "frozen zero3": (adapter_steps, zero(3, freeze=["vision", "merger"])),
    }
    cases |= {
        f"bytes zero{stage} {precision}": (engine_bytes, zero(stage, precision=precision))
        for stage in range(4)
        for precision in ("fp32", "bf16")
        if (stage, precision) != (0, "bf16")
    }
    cases |= {
        "bytes lora zero3": (engine_bytes, zero(3, lora=LORA)),
        "bytes frozen zero2": (engine_bytes, zero(2, freeze=["vision", "embeddings"])),
    }
    return run_workers(each, 2, tiny_model, make_items(videos)[:4], cases)


# Files


def test_the_recipes_cover_every_stage_and_where_state_can_be_offloaded() -> None:
    assert RECIPES.keys() == {"zero1", "zero2", "zero3", "zero2-offload-cpu", "zero3-offload-cpu", "zero3-offload-nvme"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_file_takes_a_recipe_by_its_path(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    raw = yaml.safe_load((CONFIGS / "miniature.yaml").read_text())
    raw["training"]["deepspeed"], raw["task"] = str(Path("recipes") / f"{name}.yaml"), str(CONFIGS / "tasks" / "miniature.yaml")
    run.write_text(yaml.safe_dump(raw))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / f"{name}.yaml").write_text(RECIPES[name].read_text())
    expected = yaml.safe_load(RECIPES[name].read_text())
    assert load_config(run).training.deepspeed == expected
    on_the_command_line = load_config(CONFIGS / "miniature.yaml", [f"training.deepspeed={RECIPES[name]}"])
    assert on_the_command_line.training.deepspeed == expected
    assert expected["zero_optimization"]["stage"] == int(name[4])


# One step


def check_first_step(looks: Looks, case: str) -> None:
    for rank in looks:
        assert rank[case]["groups"] == {
            "language": (STEADY.lr_language, 0.0),
            "language_no_decay": (STEADY.lr_language, 0.0),
            "vision": (STEADY.lr_vision, 0.0),
            "vision_no_decay": (STEADY.lr_vision, 0.0),
        }
        assert rank[case]["rates"] == {f"lr_{name}": rate for name, (rate, _) in rank[case]["groups"].items()}
    before, after = looks[0][case]["before"], looks[0][case]["after"]
    for name in ("model.visual.blocks.0.attn.qkv.weight", "model.language_model.layers.0.mlp.up_proj.weight"):
        rate = STEADY.lr_vision if part_of(name) == "vision" else STEADY.lr_language
        moved = (after[name].float() - before[name].float()).abs()
        # AdamW's first step is one rate up or down, wherever the gradient is not next to nothing. A bf16 number x is exact to x / 2^9.
        exact = after[name].dtype == torch.float32
        small = before[name].float().abs() < (1.0 if exact else 0.25 * rate * 2**8)
        assert small.any() and float(moved[small].median()) == pytest.approx(rate, rel=0.02 if exact else 0.2), name


@pytest.mark.parametrize("case", ["zero1 bf16", "zero3 fp32"])
def test_the_rates_arrive_and_the_weights_move_at_them(looks: Looks, case: str) -> None:
    check_first_step(looks, case)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RECIPES)
def test_with_every_recipe_the_rates_arrive_and_the_weights_move_at_them(slow_looks: Looks, name: str, precision: str) -> None:
    case = f"{name} {precision}"
    if name.endswith("nvme") and not AsyncIOBuilder().is_compatible(verbose=False):
        # libaio is the system's, not ours to install; without it the recipe is refused before it can fail half-way.
        assert all("install libaio's headers" in rank[case] for rank in slow_looks)
        return
    check_first_step(slow_looks, case)
    assert (slow_looks[0][case]["inner"] == "DeepSpeedCPUAdam") == ("offload" in name)


# fp32 master weights


def check_masters(looks: Looks, case: str) -> None:
    for rank in looks:
        found = rank[case]
        assert (found["masters"], found["states"]) == ({"torch.float32"}, {"torch.float32"})
        (weight_1, master_1), (weight_8, master_8) = found["looks"]
        assert weight_1.dtype == torch.bfloat16 and master_1.dtype == torch.float32
        # One step is less than half the distance of bf16 numbers at 1 (2^-9 below, 2^-8 above), and is not lost all the same.
        assert not (weight_1 != 1).any()
        assert float((master_1 - 1).abs().median()) == pytest.approx(STEADY.lr_language, rel=0.02)
        assert (weight_8 != 1).any()
        assert torch.equal(weight_8, master_8.bfloat16().view_as(weight_8))


def test_under_bf16_updates_too_small_for_it_add_up_in_fp32(looks: Looks) -> None:
    check_masters(looks, "masters zero2")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_under_bf16_updates_add_up_in_fp32_in_the_other_stages_too(slow_looks: Looks, stage: int) -> None:
    check_masters(slow_looks, f"masters zero{stage}")


# LoRA and frozen parts


def check_adapters(looks: Looks, case: str, parts: set[str]) -> None:
    for rank in looks:
        gradients = rank[case]["gradients"]
        assert {part_of(name) for name in gradients} == parts
        assert all(".lora_" in name and gradient.any() for name, gradient in gradients.items())
        assert rank[case]["groups"] == {part: getattr(STEADY, f"lr_{part}") for part in parts}
    before, after = looks[0][case]["before"], looks[0][case]["after"]
    assert looks[0][case]["adapters"] == sorted(looks[0][case]["gradients"]) and looks[1][case]["adapters"] is None
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(looks[0][case]["gradients"])


@pytest.mark.parametrize("case", ["lora zero2", "lora without checkpointing", "lora zero3"])
def test_adapters_of_both_towers_learn_and_nothing_else_does(looks: Looks, case: str) -> None:
    check_adapters(looks, case, {"language", "vision"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "parts"),
    [("lora zero0", {"language", "vision"}), ("lora zero1", {"language", "vision"}), ("lora language", {"language"})],
)
def test_adapters_learn_in_the_other_stages_and_where_they_are_asked_for(slow_looks: Looks, case: str, parts: set[str]) -> None:
    check_adapters(slow_looks, case, parts)


@pytest.mark.parametrize("case", ["lora without checkpointing", "lora zero3"])
def test_the_gradients_of_adapters_are_the_same_whatever_saves_memory(looks: Looks, case: str) -> None:
    for rank in looks:
        torch.testing.assert_close(rank[case]["gradients"], rank["lora zero2"]["gradients"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "frozen"),
    [("frozen zero0", {"vision"}), ("frozen zero2", {"language", "embeddings"}), ("frozen zero3", {"vision", "merger"})],
)
def test_frozen_parts_do_not_move_and_the_others_do(slow_looks: Looks, case: str, frozen: set[str]) -> None:
    before, after = slow_looks[0][case]["before"], slow_looks[0][case]["after"]
    moved = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"vision", "merger", "language", "embeddings"} - frozen


def test_no_engine_outlives_its_use(looks: Looks) -> None:
    assert [rank["engines left"] for rank in looks] == [0, 0]


@pytest.mark.slow
def test_no_engine_outlives_its_use_with_any_recipe(slow_looks: Looks) -> None:
    assert [rank["engines left"] for rank in slow_looks] == [0, 0]


# Bytes


def check_bytes(looks: Looks, case: str, training: TrainingConfig, model: Path) -> None:
    memory = training_memory(read_model_shape(model), training, SampleSize(text=50, video=50, answer=5))
    for rank in looks:
        expected = {"parameters": memory.parameters, "gradients": memory.gradients, "optimiser": memory.optimiser}
        assert rank[case] == pytest.approx(expected, rel=0.15)


BYTES: dict[str, dict[str, Any]] = {
    "bytes zero3 bf16": {"stage": 3, "precision": "bf16"},
    "bytes lora zero2": {"stage": 2, "lora": LORA},
}
SLOW_BYTES: dict[str, dict[str, Any]] = {
    "bytes zero1 bf16": {"stage": 1, "precision": "bf16"},
    "bytes zero2 fp32": {"stage": 2},
    "bytes zero0 fp32": {"stage": 0},
    "bytes zero1 fp32": {"stage": 1},
    "bytes zero2 bf16": {"stage": 2, "precision": "bf16"},
    "bytes zero3 fp32": {"stage": 3},
    "bytes lora zero3": {"stage": 3, "lora": LORA},
    # Not the embeddings: ZeRO-2 keeps the whole gradient of a weight that two workers share, and here they are a sixth of the model.
    "bytes frozen zero2": {"stage": 2, "freeze": ["vision", "embeddings"]},
}


@pytest.mark.parametrize("case", BYTES)
def test_an_engine_holds_the_bytes_that_the_plan_says(looks: Looks, case: str, tiny_model: Path) -> None:
    check_bytes(looks, case, zero(**BYTES[case]), tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_BYTES)
def test_an_engine_of_any_stage_holds_the_bytes_that_the_plan_says(slow_looks: Looks, case: str, tiny_model: Path) -> None:
    check_bytes(slow_looks, case, zero(**SLOW_BYTES[case]), tiny_model)
