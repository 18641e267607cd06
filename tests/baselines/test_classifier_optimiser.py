"""Which weights learn how fast: layer decay, what does not decay, and rates from the first step to the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rbft.baselines.classifier_optimiser import build_optimiser, rate_at, set_rate
from rbft.config import VideoClassifierConfig
from rbft.models.video.internvideo2 import InternVideo2Config, InternVideo2ForVideoClassification
from rbft.models.video.uniformerv2 import UniFormerV2Config, UniFormerV2ForVideoClassification

_SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "num_frames": 4}


def settings(**own: Any) -> VideoClassifierConfig:
    return VideoClassifierConfig(name="a", path="a", **own)


def scales(model: torch.nn.Module, optimiser: torch.optim.AdamW) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group["scale"] for group in optimiser.param_groups for parameter in group["params"]}


def test_layers_learn_the_slower_the_earlier_they_are() -> None:
    """As in the official code: 0.5 ** (layers + 1 - depth), the embeddings at depth 0, pooling and head at the full rate."""
    model = InternVideo2ForVideoClassification(InternVideo2Config(**_SIZES, num_hidden_layers=3, pooling_size=16, num_pooling_heads=2))
    found = scales(model, build_optimiser(model, settings(layer_decay=0.5)))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, scale in found.items():
        if ".layers." in name:
            assert scale == 0.5 ** (3 - int(name.split(".layers.")[1][0])), name
        elif "pooling" in name or name.startswith("classifier"):
            assert scale == 1, name
        else:
            assert scale == 0.5**4, name


def test_global_blocks_of_uniformerv2_count_as_what_comes_last() -> None:
    model = UniFormerV2ForVideoClassification(UniFormerV2Config(**_SIZES, num_hidden_layers=2, global_layers=[0, 1]))
    found = scales(model, build_optimiser(model, settings(layer_decay=0.5)))
    assert {scale for name, scale in found.items() if "global_blocks" in name} == {1.0}
    assert found["uniformerv2.layers.0.mlp.0.weight"] == 0.25 and found["uniformerv2.position_embeddings"] == 0.125


def test_without_layer_decay_there_are_two_groups_and_positions_named_by_the_model_do_not_decay() -> None:
    model = InternVideo2ForVideoClassification(InternVideo2Config(**_SIZES, num_hidden_layers=1, pooling_size=16, num_pooling_heads=2))
    decaying, others = build_optimiser(model, settings(weight_decay=0.1)).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert "internvideo2.position_embeddings" in {names[parameter] for parameter in others["params"]}
    assert all(parameter.ndim > 1 for parameter in decaying["params"])


def test_rates_rise_from_the_first_to_the_peak_and_fall_to_the_last() -> None:
    own = settings(learning_rate=4e-6, initial_learning_rate=1e-6, final_learning_rate=1e-6, warmup_ratio=0.2)
    rates = [rate_at(own, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6 + 3e-6 / 20) and rates[19] == pytest.approx(4e-6) == rates[20]
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert 1e-6 < rates[-1] < 1.01e-6


def test_rates_for_a_batch_are_scaled_with_ours_and_by_layer() -> None:
    own = settings(recipe="internvideo2-b14", global_batch_size=64, warmup_ratio=0.0)
    assert rate_at(own, 0, 10) == pytest.approx(2e-5 / 4)
    model = InternVideo2ForVideoClassification(InternVideo2Config(**_SIZES, num_hidden_layers=1, pooling_size=16, num_pooling_heads=2))
    optimiser = build_optimiser(model, own)
    assert set_rate(optimiser, own, 0, 10) == pytest.approx(5e-6)
    assert {round(group["lr"] / 5e-6, 6) for group in optimiser.param_groups} == {1.0, 0.75, 0.5625}
