"""The check before a stage's first step, and Liger's way into the modules."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from rbft.errors import TrainingError
from rbft.models import attention
from rbft.models.attention import use_segments
from rbft.models.batches import MicroBatch, pack
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.training.kernels import check_kernels, fuse, reference_kernels
from rbft.training.loss import SupervisedLoss
from tests.samples import SPEC, TASK, random_clip


@pytest.fixture
def engine(tiny_model: Path) -> Any:
    """What `check_kernels` needs of a DeepSpeed engine."""
    model = load_model(tiny_model, "float32")
    use_segments(model, packed=True)
    adapter = ChatAdapter(tiny_model, SPEC)
    return SimpleNamespace(module=SupervisedLoss(model, adapter.patches), device=torch.device("cpu"), adapter=adapter)


@pytest.fixture
def batch(engine: Any) -> MicroBatch:
    clips = [random_clip(4, 56, 84), random_clip(8, 84, 84, seed=1)]
    return pack([engine.adapter.encode(clip, TASK.question_messages(), "normal") for clip in clips], engine.adapter)


def test_attention_in_segments_agrees_with_transformers_own(engine: Any, batch: MicroBatch) -> None:
    assert check_kernels(engine, batch, "fp32") < 1e-5


def test_attention_that_leaks_between_samples_is_found(engine: Any, batch: MicroBatch) -> None:
    def leaking(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: tuple[int, ...], is_causal: bool, scale: float
    ) -> torch.Tensor:
        return honest(q, k, v, (0, boundaries[-1]) if is_causal else boundaries, is_causal, scale)

    honest = attention._by_length
    with mock.patch.object(attention, "_by_length", leaking), pytest.raises(TrainingError, match=r"set training\.fused_kernels=off"):
        check_kernels(engine, batch, "fp32")


def test_kernels_that_give_no_number_are_found_and_weights_that_give_none_are_not_their_fault(engine: Any, batch: MicroBatch) -> None:
    honest = attention._by_length
    with mock.patch.object(attention, "_by_length", lambda *arguments: honest(*arguments) * math.nan):
        with pytest.raises(TrainingError, match="has a loss of nan a token with the kernels in use"):
            check_kernels(engine, batch, "fp32")
        with torch.no_grad():
            engine.module.model.model.language_model.norm.weight.fill_(math.nan)
        assert check_kernels(engine, batch, "fp32") == 0.0


def test_an_infinite_loss_by_either_way_is_left_to_the_step_which_names_the_videos(engine: Any, batch: MicroBatch) -> None:
    infinite = batch | {"token_weights": torch.full(batch["labels"].shape, math.inf)}
    assert check_kernels(engine, infinite, "fp32") == 0.0


class _Norm(torch.autograd.Function):
    """The arithmetic of Liger's kernels, which run on GPUs alone, behind their names and arguments."""

    @staticmethod
    def apply(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> torch.Tensor:
        assert (offset, casting_mode, in_place) == (0.0, "llama", False)
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


class _SiLUMul:
    @staticmethod
    def apply(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(gate) * up


def test_fused_modules_are_all_norms_and_gated_mlps_and_the_reference_is_without_them(engine: Any, batch: MicroBatch) -> None:
    model = engine.module.model
    modules = {"liger_kernel": ModuleType("liger_kernel"), "liger_kernel.ops": ModuleType("liger_kernel.ops")}
    modules["liger_kernel.ops.rms_norm"] = SimpleNamespace(LigerRMSNormFunction=_Norm)  # type: ignore[assignment]
    modules["liger_kernel.ops.swiglu"] = SimpleNamespace(LigerSiLUMulFunction=_SiLUMul)  # type: ignore[assignment]
    with mock.patch.dict(sys.modules, modules):
        # Two blocks and two layers with two norms and an MLP each, the merger's norm and the last one.
        assert fuse(model) == 4 * 3 + 2
    assert check_kernels(engine, batch, "fp32") < 1e-4
    fused = model.model.language_model.norm.forward
    with reference_kernels(model):
        assert "forward" not in model.model.language_model.norm.__dict__
    assert model.model.language_model.norm.forward == fused
