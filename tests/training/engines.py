"""What is looked at in a DeepSpeed engine inside a worker of `tests.training.workers`: its rates, precision, bytes and adapters."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from rbft.config import OptimiserConfig, TrainingConfig
from rbft.data.samples import TrainingItem
from rbft.errors import ConfigError, TrainingError
from rbft.models.adapters import is_adapter
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.training.deepspeed_engine import build_engine, check_rates, forward_backward, free_engine, set_rates, whole_state_dict
from rbft.video.pool import DecodePool
from tests.training.stages import VIDEO

STEADY = OptimiserConfig(lr_language=5e-4, lr_vision=1e-4, warmup_ratio=0.0, weight_decay=0.0)
"""No decay, so that AdamW's first step moves a weight by its rate and by nothing else."""


Look = Callable[[Path, list[TrainingItem], TrainingConfig], dict[str, Any]]


def make_batches(model: Path, items: list[TrainingItem]) -> list[dict[str, torch.Tensor]]:
    """This rank's share of `items` as one micro-batch."""
    rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    adapter = ChatAdapter(model, VIDEO.spec())
    with DecodePool(1) as pool:
        share = items[rank::num_workers]
        samples = [adapter.encode(pool.decode(item.example.uri, adapter.spec), item.messages, item.answer) for item in share]
    return [adapter.collate(samples)]


def open_engine(model: Path, training: TrainingConfig, optimiser: OptimiserConfig = STEADY) -> Any:
    precision = "bfloat16" if training.precision == "bf16" else "float32"
    engine = build_engine(load_model(model, precision), training, optimiser)
    check_rates(engine, training, optimiser)
    return engine


def each(model: Path, items: list[TrainingItem], cases: dict[str, tuple[Look, TrainingConfig]]) -> dict[str, Any]:
    """Case -> what its look at an engine of its configuration found, or the message of the error that refused it."""
    found: dict[str, Any] = {}
    for name, (look, training) in cases.items():
        try:
            found[name] = look(model, items, training)
        except (ConfigError, TrainingError) as error:
            found[name] = str(error)
    gc.collect()
    alive = [value for value in gc.get_objects() if type(value) is deepspeed.DeepSpeedEngine]  # isinstance would wake lazy modules
    return found | {"engines left": len(alive)}


def weights_of(engine: Any) -> dict[str, torch.Tensor] | None:
    weights = whole_state_dict(engine)
    return None if weights is None else {name: weight.clone() for name, weight in weights.items()}


def first_step(model: Path, items: list[TrainingItem], training: TrainingConfig) -> dict[str, Any]:
    """Rates read back from the engine, and what one step did to the weights."""
    engine = open_engine(model, training)
    before = weights_of(engine)
    rates = set_rates(engine, 0, 10**6, 0.0)
    forward_backward(engine, make_batches(model, items))
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in engine.optimizer.param_groups}
    kinds = {"engine": type(engine.optimizer).__name__, "inner": type(engine.basic_optimizer).__name__}
    result = {"rates": rates, "groups": groups, "before": before, "after": weights_of(engine), **kinds}
    free_engine(engine)
    return result


def many_small_steps(model: Path, items: list[TrainingItem], training: TrainingConfig) -> dict[str, Any]:
    """The types that the optimiser holds, and a norm's weights and fp32 master weights after 1 and after 8 steps on the same batch."""
    engine = open_engine(model, training)
    batches = make_batches(model, items)
    norm = next(p for name, p in engine.module.named_parameters() if name.endswith("language_model.layers.0.input_layernorm.weight"))
    looks = []
    for step in range(8):
        set_rates(engine, step, 10**6, 0.0)
        forward_backward(engine, batches)
        if step in (0, 7):
            with deepspeed.zero.GatheredParameters([norm], enabled=hasattr(norm, "ds_id")):
                weight = norm.detach().clone()
            looks.append((weight, deepspeed.utils.safe_get_full_fp32_param(norm).clone()))
    held = {str(value.dtype) for state in engine.basic_optimizer.state.values() for value in state.values() if value.numel() > 1}
    masters = {str(p.dtype) for p in masters_of(engine)}
    free_engine(engine)
    return {"looks": looks, "states": held, "masters": masters}


def masters_of(engine: Any) -> list[torch.Tensor]:
    """What AdamW steps: this rank's fp32 partitions, which ZeRO-3 shows to the optimiser only while it steps."""
    shown = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    return shown or list(engine.optimizer.fp32_partitioned_groups_flat)


def adapter_steps(model: Path, items: list[TrainingItem], training: TrainingConfig) -> dict[str, Any]:
    """Gradients of the adapters at the second step (at the first those of A are nought, as B is), and what moved in two."""
    engine = open_engine(model, training)
    before = weights_of(engine)
    batches = make_batches(model, items)
    gradients: dict[str, torch.Tensor] = {}
    step = engine.step

    def step_with_a_look() -> None:
        for name, parameter in engine.module.model.named_parameters():
            if parameter.requires_grad:
                gradients[name] = deepspeed.utils.safe_get_full_grad(parameter).clone()
        step()

    engine.step = step_with_a_look
    for number in range(2):
        set_rates(engine, number, 10**6, 0.0)
        forward_backward(engine, batches)
    adapters = whole_state_dict(engine, adapters_only=True)
    assert adapters is None or all(is_adapter(name) for name in adapters)
    result = {
        "gradients": gradients,
        "before": before,
        "after": weights_of(engine),
        "adapters": None if adapters is None else sorted(adapters),
        "groups": {group["name"]: group["peak_lr"] for group in engine.optimizer.param_groups},
    }
    del engine.step
    free_engine(engine)
    return result


def engine_bytes(model: Path, items: list[TrainingItem], training: TrainingConfig) -> dict[str, int]:
    """Bytes that the engine holds before its first optimiser step (gradients are there) and after it (moments are)."""
    engine = open_engine(model, training)
    found: dict[str, int] = {}
    step = engine.step

    def step_with_a_look() -> None:
        found["gradients"] = gradient_bytes(engine)
        step()

    engine.step = step_with_a_look
    set_rates(engine, 0, 10**6, 0.0)
    forward_backward(engine, make_batches(model, items))
    parameters = list(engine.module.parameters())
    found["parameters"] = storage_bytes([getattr(p, "ds_tensor", p.data) for p in parameters])
    masters = masters_of(engine)
    moments = [value for state in engine.basic_optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    own = {p.untyped_storage()._cdata for p in parameters}  # without ZeRO the optimiser steps the model's own weights
    found["optimiser"] = storage_bytes([value for value in [*masters, *moments] if value.untyped_storage()._cdata not in own])
    del engine.step
    free_engine(engine)
    return found


def gradient_bytes(engine: Any) -> int:
    """Of all storages that hold gradients between the backward pass and the step, wherever this DeepSpeed keeps them."""
    optimiser, tensors = engine.optimizer, []
    for name in ("averaged_gradients", "fp32_groups_gradients_flat", "grad_partitions_flat_buffer", "temporary_gradients"):
        tensors += list(_tensors(getattr(optimiser, name, None)))
    for parameter in engine.module.parameters():
        tensors += [value for value in (parameter.grad, getattr(parameter, "grad_accum", None)) if value is not None]
    return storage_bytes(tensors)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, list | tuple) else []


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())
