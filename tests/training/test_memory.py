"""The estimate of activations against the storages that live in a real forward and backward pass."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText

from rbft.config import TrainingConfig
from rbft.models.adapters import add_adapters
from rbft.models.last_layer import narrow_last_layer
from rbft.models.parameter_groups import freeze_parts
from rbft.models.patches import PatchLayout
from rbft.models.positions import use_reference_positions
from rbft.models.shape import ModelShape, read_model_shape
from rbft.training.activations import LiveBytes, recompute_activations
from rbft.training.loss import SupervisedLoss
from rbft.training.memory import SampleSize, activation_bytes, remedies, training_memory
from tests.tiny_models import Kind, make_tiny_model

GRID = (2, 16, 16)
SAMPLE = SampleSize(text=64, video=2 * 16 * 16 // 4, answer=24)


@pytest.fixture(scope="module", params=get_args(Kind))
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    """Of a model of 30M parameters, in a folder without weights; a head of the language model is shared by two of queries, as in Qwen's."""
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text |= {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1536}
    text |= {"vocab_size": 2048, "layer_types": ["full_attention"] * 6}
    text["rope_parameters"]["mrope_section"] = [8, 12, 12]
    if request.param == "qwen2_5_vl":
        tower = {"hidden_size": 320, "intermediate_size": 960, "out_hidden_size": 512, "window_size": 112, "fullatt_block_indexes": [2, 5]}
    else:
        tower = {"embed_dim": 320, "hidden_size": 512, "mlp_ratio": 4}
    config["vision_config"] |= tower | {"depth": 6, "num_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    found = read_model_shape(folder)
    assert 20e6 < found.num_parameters < 100e6
    return found


def live_bytes(shape: ModelShape, training: TrainingConfig) -> int:
    """The most that is alive in a forward and backward pass on random samples of `SAMPLE`'s size; gradients are given away as they come."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    config: Any = AutoConfig.for_model(**shape.config.to_dict())
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    use_reference_positions(model)
    if training.lora is not None:
        add_adapters(model, training.lora, 0)
    freeze_parts(model, training.freeze)
    if training.gradient_checkpointing:
        recompute_activations(model)
    narrow_last_layer(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda of: setattr(of, "grad", None))
    size, length = training.micro_batch_size, SAMPLE.text + SAMPLE.video
    input_ids = torch.randint(0, 200, (size, length))
    input_ids[:, 10 : 10 + SAMPLE.video] = config.video_token_id
    labels = torch.full_like(input_ids, -100)
    labels[:, -SAMPLE.answer :] = input_ids[:, -SAMPLE.answer :]
    num_values = size * SAMPLE.video * shape.merge_size**2 * 3 * shape.temporal_patch_size * shape.patch_size**2
    frames = torch.randint(0, 256, (num_values,), dtype=torch.uint8)
    layout = PatchLayout(shape.patch_size, shape.merge_size, shape.temporal_patch_size, (127.0,) * 3, (60.0,) * 3)
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == config.video_token_id).long() * 2,
        "labels": labels,
        "frames": frames,
        "video_grid_thw": torch.tensor([GRID] * size),
    }
    loss = SupervisedLoss(model.train(), layout)
    with LiveBytes() as live:
        loss(**batch).backward()
    return live.most + frames.nbytes


CASES: dict[str, dict[str, Any]] = {
    "checkpointing": {},
    "no checkpointing": {"gradient_checkpointing": False},
    "frozen tower": {"freeze": ["vision"], "gradient_checkpointing": False},
}
SLOW_CASES: dict[str, dict[str, Any]] = {
    "two samples": {"micro_batch_size": 2},
    "lora": {"lora": {"rank": 16, "vision": "all"}, "gradient_checkpointing": False},
    "lora, checkpointing": {"lora": {"rank": 16, "vision": "all"}},
    "lora of language": {"lora": {"rank": 16}},
    "lora of language, no checkpointing": {"lora": {"rank": 16}, "gradient_checkpointing": False},
    "frozen tower, checkpointing": {"freeze": ["vision"]},
    "frozen language": {"freeze": ["language", "embeddings"], "gradient_checkpointing": False},
    "bf16": {"precision": "bf16"},
    "bf16, no checkpointing": {"precision": "bf16", "gradient_checkpointing": False},
}


def check_activations(shape: ModelShape, fields: dict[str, Any]) -> None:
    training = TrainingConfig.model_validate({"precision": "fp32", "micro_batch_size": 1, **fields})
    assert activation_bytes(shape, training, SAMPLE) == pytest.approx(live_bytes(shape, training), rel=0.15)


@pytest.mark.parametrize("case", CASES)
def test_activations_are_estimated_to_15_percent(shape: ModelShape, case: str) -> None:
    check_activations(shape, CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES)
def test_activations_are_estimated_to_15_percent_whatever_is_trained(shape: ModelShape, case: str) -> None:
    check_activations(shape, SLOW_CASES[case])


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_keeps_nothing_for_a_backward_pass_that_does_not_come(shape: ModelShape, frozen: bool) -> None:
    config: Any = AutoConfig.for_model(**shape.config.to_dict())
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).train()
    freeze_parts(model, ["vision", "merger"] if frozen else [])
    recompute_activations(model)
    assert all(layer.gradient_checkpointing for layer in model.model.language_model.layers)
    assert all(block.gradient_checkpointing != frozen for block in model.model.visual.blocks)
    pixels = torch.randn(64, 3 * shape.temporal_patch_size * shape.patch_size**2)
    output = model.model.visual(pixels, grid_thw=torch.tensor([[1, 8, 8]])).pooler_output
    assert all(states.requires_grad != frozen for states in output)


def test_live_bytes_are_those_of_the_storages_that_are_there() -> None:
    before = torch.zeros(1000)
    with LiveBytes() as live:
        kept = before + 1
        assert (live.now, live.most) == (4000, 4000)
        view = kept[:500].view(5, 100)
        assert live.now == 4000
        other = view * 2
        assert live.now == 6000
        del other
        assert (live.now, live.most) == (4000, 6000)
        del kept
        assert live.now == 4000, "a view keeps the storage"
        del view
        assert live.now == 0


def test_remedies_come_in_order_add_up_and_each_saves_memory(shape: ModelShape) -> None:
    training = TrainingConfig(gradient_checkpointing=False)
    found = list(remedies(shape, training, SAMPLE))
    assert [remedy.change.split(":")[0] for remedy in found] == [
        *("micro_batch_size", "gradient_checkpointing", "deepspeed", "lora", "deepspeed"),
    ]
    totals = [training_memory(shape, training, SAMPLE).total, *(remedy.memory.total for remedy in found)]
    # But for ZeRO-3, whose buffers are as large as a model as small as this.
    assert totals[0] > totals[1] > totals[2] and totals[3] > totals[4] > totals[5]
    assert found[2].memory.parameters < found[1].memory.parameters / 7
    assert found[-1].memory.offloaded > 0
    # What is done already is not advised.
    done = training.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True, "num_workers": 1})
    assert [remedy.change.split(":")[0] for remedy in remedies(shape, done, SAMPLE)] == ["lora", "deepspeed"]


def pasted(training: TrainingConfig, change: str) -> TrainingConfig:
    """The configuration with the line of advice in it, as somebody who follows it has it."""
    return TrainingConfig.model_validate(training.model_dump() | yaml.safe_load("{" + change + "}"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"deepspeed": {"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True}, "wall_clock_breakdown": True}},
        {"precision": "fp32", "deepspeed": {}},
        {"freeze": ["vision"], "gradient_checkpointing": False},
        {"lora": {"rank": 8, "quantised_base": "nf4"}, "gradient_checkpointing": False},
    ],
)
def test_what_is_pasted_is_taken_and_is_what_was_estimated(shape: ModelShape, fields: dict[str, Any]) -> None:
    training = TrainingConfig.model_validate(fields)
    found = list(remedies(shape, training, SAMPLE))
    assert found and "\n" not in "".join(remedy.change for remedy in found)
    for remedy in found:
        training = pasted(training, remedy.change)
        assert training_memory(shape, training, SAMPLE) == remedy.memory
    assert training.zero_stage == (2 if training.lora and training.lora.quantised_base == "nf4" else 3)


def test_advice_keeps_what_else_deepspeed_was_told(shape: ModelShape) -> None:
    training = TrainingConfig(micro_batch_size=1, deepspeed={"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}})
    zero3 = next(iter(remedies(shape, training, SAMPLE)))
    assert zero3.change == "deepspeed: {zero_optimization: {stage: 3, reduce_bucket_size: 1000}}"
