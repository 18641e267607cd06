"""What the comparison with the official code does not see: starts from random weights, checkpointing, low precision, stochastic depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rbft.models.video.internvideo2 import InternVideo2Config, InternVideo2ForVideoClassification
from rbft.models.video.layers import DropPath
from rbft.models.video.uniformerv2 import UniFormerV2Config, UniFormerV2ForVideoClassification

_SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 3}
_SIZES |= {"image_size": 32, "patch_size": 16, "num_frames": 4}


def make(kind: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    if kind == "uniformerv2":
        own = {"global_layers": [0, 1], "global_dropout": 0.0, "classifier_dropout": 0.0}
        return UniFormerV2ForVideoClassification(UniFormerV2Config(**_SIZES, **own | settings))
    return InternVideo2ForVideoClassification(InternVideo2Config(**_SIZES, pooling_size=16, num_pooling_heads=2, **settings))


def clips() -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


KINDS = ("uniformerv2", "internvideo2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_from_random_weights_is_finite_and_the_seeds(kind: str) -> None:
    first, again = make(kind), make(kind)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert all(value.isfinite().all() for value in first.state_dict().values())
    logits = first.eval()(clips()).logits
    assert logits.isfinite().all() and logits.std() > 0


def test_local_and_global_blocks_begin_as_nothing() -> None:
    """So a fine-tuning from CLIP begins with CLIP."""
    model: Any = make("uniformerv2", has_local_blocks=True, local_size=16).eval()
    asked, tokens = torch.randn(2, 32), torch.randn(2, 4, 5, 32)
    for block, layer in zip(model.uniformerv2.global_blocks, model.uniformerv2.layers, strict=True):
        assert torch.equal(block(asked, tokens), asked)
        assert not layer.local_before(tokens[:, :, 1:]).any() and not layer.local_after(tokens[:, :, 1:]).any()
    extra: Any = make("internvideo2", has_extra_mlp=True)
    assert not extra.internvideo2.attention_pooling.extra_mlp(torch.randn(2, 16)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        model = make(kind).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
        model(clips(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_attention_runs_in_the_precision_of_autocast(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where norms of queries and keys would leave it, there are no fused kernels."""
    seen: list[set[torch.dtype]] = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watched(module: nn.Module, *heads: Any, **how: Any) -> Any:
        seen.append({part.dtype for part in heads[:3]})
        return sdpa(module, *heads, **how)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", watched)
    with torch.autocast("cpu", torch.bfloat16):
        assert make(kind).eval()(clips()).logits.isfinite().all()
    assert seen == [{torch.bfloat16}] * 2


def test_drop_path_leaves_out_clips_and_keeps_the_mean() -> None:
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    dropped = drop(torch.ones(4000, 3, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2))), "a clip as a whole"
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(3, 2)), torch.ones(3, 2))
