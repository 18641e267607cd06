"""Ours against the official implementations, with the same weights by way of the converter: outputs and gradients of the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from rbft.models.video.convert import convert_weights, model_class
from rbft.models.video.official_configs import Geometry
from rbft.models.video.official_keys import internvideo2_keys, uniformerv2_keys
from tests.models.video.recipe import draw_clips, draw_targets, draw_weights, kept

FIXTURES = sorted((Path(__file__).parent / "official").glob("*.safetensors"))


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def build(about: dict[str, Any]) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    """Our model with the drawn weights, without dropout, and official name -> ours."""
    geometry = Geometry(
        trained_frames=about["num_frames"],
        num_heads=about["num_heads"],
        num_pooling_heads=about.get("num_pooling_heads", 16),
        global_layers=tuple(about["global_layers"]) if "global_layers" in about else None,
    )
    config, weights = convert_weights(draw_weights(about["seed"], about["shapes"]), geometry, "fixture")
    keys = uniformerv2_keys(config) if config.model_type == "uniformerv2" else internvideo2_keys(config)
    config.classifier_dropout = 0.0
    if config.model_type == "uniformerv2":
        config.global_dropout = 0.0
    model = model_class(config)(config)
    model.load_state_dict(weights)
    return model.requires_grad_(True), keys


@pytest.mark.parametrize("path", FIXTURES, ids=[path.stem for path in FIXTURES])
def test_outputs_and_gradients_are_those_of_the_official_code(path: Path) -> None:
    about, theirs = read(path)
    clips = draw_clips(about["seed"], about["num_clips"], about["num_frames"], about["size"])
    targets = draw_targets(about["num_clips"], about["num_labels"])
    for mode in {name.partition("/")[0] for name in theirs} - {"initial"}:
        model, keys = build(about)
        answer = model.train(mode == "train")(clips, labels=targets)
        assert (answer.logits - theirs[f"{mode}/logits"]).abs().max() < 1e-5 < theirs[f"{mode}/logits"].abs().max()
        assert abs(answer.loss - theirs[f"{mode}/loss"]) < 1e-5
        answer.loss.backward()
        ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        compared = 0
        for official, names in keys.items():
            if f"{mode}/{official}" not in theirs:
                assert not set(names) & ours.keys(), official
                continue
            gradient = torch.cat([ours[name].flatten() for name in names])
            wanted = theirs[f"{mode}/{official}"]  # the norm, of some weights above 1, then elements, all below 3
            assert ((kept(gradient) - wanted).abs() < 1e-5 * wanted.abs().clamp(min=1)).all(), official
            compared += len(names)
        assert compared == len(ours)


@pytest.mark.parametrize("name", ["internvideo2-f5", "internvideo2-separate-f3", "internvideo2-tubelets"])
def test_position_embeddings_begin_as_in_the_official_code(name: str) -> None:
    about, theirs = read(next(path for path in FIXTURES if path.stem == name))
    model, keys = build(about)
    model.internvideo2.draw_positions()  # type: ignore[union-attr, operator]
    ours, initial = model.state_dict(), {key for key in theirs if key.startswith("initial/")}
    assert initial
    for key in initial:
        (own,) = keys[key.removeprefix("initial/")]
        assert torch.allclose(ours[own], theirs[key], atol=1e-6), key


def test_the_comparison_would_see_a_block_that_stands_elsewhere() -> None:
    about, theirs = read(next(path for path in FIXTURES if path.stem == "uniformerv2-several-globals"))
    model, _ = build(about | {"global_layers": [1, 2, 3]})
    clips = draw_clips(about["seed"], about["num_clips"], about["num_frames"], about["size"])
    assert (model.eval()(clips).logits - theirs["eval/logits"]).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_attention_kernel_is_a_choice_that_changes_nothing(kernel: str) -> None:
    about, theirs = read(next(path for path in FIXTURES if path.stem == "internvideo2-f5"))
    model, _ = build(about)
    model.set_attn_implementation(kernel)  # type: ignore[operator]
    clips = draw_clips(about["seed"], about["num_clips"], about["num_frames"], about["size"])
    assert (model.eval()(clips).logits - theirs["eval/logits"]).abs().max() < 1e-5
