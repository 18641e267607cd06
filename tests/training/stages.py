"""Tiny stages, and what is done with them inside a worker of `tests.training.workers`."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch

from rbft.config import ModelConfig, OptimiserConfig, TrainingConfig, VideoConfig
from rbft.data.samples import SampleEncoder, TrainingItem
from rbft.models.batches import pack, pad
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Example
from rbft.training import checkpoint_write, checkpoints, loop
from rbft.training.deepspeed_engine import build_engine, forward_backward, free_engine, set_rates, whole_state_dict
from rbft.training.kernels import check_kernels
from rbft.training.log import StageLog
from rbft.training.order import worker_share
from rbft.training.stage import StageSpec
from rbft.training.stop import StopRequest, on_sigterm
from rbft.video.pool import DecodePool
from tests.samples import TASK

VIDEO = VideoConfig(max_pixels=12_544, backend="pyav")
OPTIMISER = OptimiserConfig(lr_language=1e-3, lr_vision=2e-4, warmup_ratio=0.3)

ANSWERS = ("normal", "a dog runs across the yard and back", "abnormal", "no", "somebody is at the door", "it is night")
"""Of quite different numbers of tokens: ranks and micro-batches must not be averaged as if they were equal."""


def make_items(videos: list[Path]) -> list[TrainingItem]:
    """One item a video, of both stages' kinds."""
    messages = (TASK.question_messages(), TASK.rationale_messages("Camera at the gate."))
    return [TrainingItem(Example(f"v{i}", str(video)), messages[i % 2], ANSWERS[i % len(ANSWERS)]) for i, video in enumerate(videos)]


def make_training(
    num_workers: int, micro_batch_size: int = 1, global_batch_size: int = 4, zero_stage: int = 2, **others: Any
) -> TrainingConfig:
    return TrainingConfig(
        num_workers=num_workers,
        micro_batch_size=micro_batch_size,
        global_batch_size=global_batch_size,
        precision="fp32",
        num_cpus=1,
        num_gpus=0,
        deepspeed={"zero_optimization": {"stage": zero_stage}},
        **others,
    )


def make_stage(model: Path, folder: Path, training: TrainingConfig, **others: Any) -> StageSpec:
    stage: dict[str, Any] = {
        "name": "tiny/classify",
        "folder": str(folder),
        "fingerprint": "f" * 16,
        "model": ModelConfig(path=str(model), dtype="float32"),
        "task": TASK,
        "video": VIDEO,
        "training": training,
        "optimiser": OPTIMISER,
        "epochs": 2,
        "seed": 7,
        "max_bad_fraction": 0.0,
        "lineage": {"run": "tiny"},
    }
    return StageSpec(**(stage | others))


def one_step(model: Path, training: TrainingConfig, items: list[TrainingItem | None]) -> dict[str, Any]:
    """Loss, tokens, whole gradients before clipping, learning rates and weights afterwards, of one step on the global batch `items`."""
    rank = torch.distributed.get_rank()
    adapter = ChatAdapter(model, VIDEO.spec())
    engine = build_engine(load_model(model, "float32"), training, OPTIMISER, adapter.patches)
    with DecodePool(1) as pool:
        encoder = SampleEncoder(adapter, pool, 1)
        share = worker_share(list(range(len(items))), rank, training.num_workers)
        samples = list(encoder.stream(None if index is None else items[index] for index in share))
        encoder.close()
    size = training.micro_batch_size
    join = pack if training.batching == "packed" else pad
    micro_batches = [join(samples[start : start + size], adapter) for start in range(0, len(samples), size)]
    if training.check_kernels:
        check_kernels(engine, micro_batches[0], training.precision)
    gradients: dict[str, torch.Tensor] = {}
    step = engine.step

    def step_with_a_look() -> None:
        if engine.is_gradient_accumulation_boundary():
            for name, parameter in engine.module.model.named_parameters():
                gradients[name] = deepspeed.utils.safe_get_full_grad(parameter).clone()
        step()

    engine.step = step_with_a_look
    rates = set_rates(engine, 1, 4, 0.25)
    outcome = forward_backward(engine, micro_batches, flags=(float(rank), 0.5))
    weights = whole_state_dict(engine)
    result = {
        "loss": outcome.loss,
        "num_tokens": outcome.num_tokens,
        "flags": outcome.flags,
        "is_finite": outcome.is_finite,
        "num_tokens_here": sum(sample.num_supervised_tokens for sample in samples),
        "gradients": gradients,
        "rates": rates,
        "groups": {group["name"]: (group["lr"], group["weight_decay"]) for group in engine.optimizer.param_groups},
        "weights": None if weights is None else {name: weight.clone() for name, weight in weights.items()},
    }
    engine.destroy()
    return result


def many_steps(model: Path, cases: dict[str, tuple[TrainingConfig, list[TrainingItem | None]]]) -> dict[str, dict[str, Any]]:
    return {name: one_step(model, training, items) for name, (training, items) in cases.items()}


def run_until_killed(spec: StageSpec, items: list[TrainingItem], last_step: int) -> None:
    """`run_stage`, whose rank 0 is killed when it has half written the log's line after that of `last_step`."""
    write = StageLog.write

    def write_and_die(log: Any, scalars: dict[str, float]) -> None:
        if scalars["step"] > last_step:
            log._lines.write('{"step": ')
            log._lines.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(log, scalars)

    with mock.patch.object(StageLog, "write", write_and_die):
        loop.run_stage(spec, items)


def run_until_told(spec: StageSpec, items: list[TrainingItem], last_step: int, rank: int) -> None:
    """`run_stage`, of which the worker `rank` gets a SIGTERM during the optimiser step after `last_step`."""
    request = StopRequest()
    on_sigterm(request, "SIGTERM")

    def step_and_be_told(engine: Any, *arguments: Any) -> Any:
        if engine.global_steps == last_step and torch.distributed.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward_backward(engine, *arguments)

    with mock.patch.object(loop, "forward_backward", step_and_be_told):
        loop.run_stage(spec, items, request)


def run_until_killed_writing(spec: StageSpec, items: list[TrainingItem], last_step: int, rank: int) -> None:
    """`run_stage`, whose worker `rank` is killed in the middle of writing a shard of the first checkpoint after `last_step`."""
    write = checkpoint_write._HashedFile.write

    def write_and_die(file: Any, data: Any) -> int:
        if Path(file._stream.name).parts[-3] > f"step-{last_step:08d}" and file.num_bytes > 10_000:
            file._stream.write(bytes(data)[: len(data) // 2])
            file._stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, data)

    with mock.patch.object(checkpoint_write._HashedFile, "write", write_and_die if torch.distributed.get_rank() == rank else write):
        loop.run_stage(spec, items)


def run_on_a_full_disk(spec: StageSpec, items: list[TrainingItem], rank: int) -> None:
    """`run_stage`, of which the worker `rank` cannot write files of more than a few thousand bytes."""
    if torch.distributed.get_rank() == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    loop.run_stage(spec, items)


def save_and_load(model: Path, folder: Path, items: list[TrainingItem], zero_stage: int) -> dict[str, Any]:
    """Save after each of five steps, the first being the best, and load it again; the weights after it, once loaded, and what is left."""
    training = make_training(1, 4, zero_stage=zero_stage)
    engine = build_engine(load_model(model, "float32"), training, OPTIMISER)
    adapter = ChatAdapter(model, VIDEO.spec())
    with DecodePool(1) as pool:
        samples = [adapter.encode(pool.decode(item.example.uri, adapter.spec), item.messages, item.answer) for item in items[:4]]
    batch = adapter.collate(samples)
    best: dict[str, torch.Tensor] = {}
    with checkpoints.CheckpointWriter(engine, folder, "f" * 16, num_kept=2) as writer:
        for step in range(1, 6):
            set_rates(engine, step, 10, 0.0)
            forward_backward(engine, [batch])
            writer.save(step, {}, keep=(1,))
            if step == 1:
                best = {name: weight.clone() for name, weight in (whole_state_dict(engine) or {}).items()}
        writer.wait()
    last = {name: weight.clone() for name, weight in (whole_state_dict(engine) or {}).items()}
    checkpoints.load_checkpoint(engine, checkpoints.checkpoint_path(folder, 1), "f" * 16)
    loaded = {name: weight.clone() for name, weight in (whole_state_dict(engine) or {}).items()}
    free_engine(engine)
    return {"best": best, "last": last, "loaded": loaded, "left": sorted(path.name for path in folder.iterdir())}


def in_store(environment: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a worker that finds its store by `environment`."""
    os.environ |= environment
    return function(*arguments)


def run_counted(spec: StageSpec, items: list[TrainingItem]) -> int:
    """`run_stage`; how many optimiser steps it took."""
    with mock.patch.object(loop, "forward_backward", wraps=forward_backward) as step:
        loop.run_stage(spec, items)
    return step.call_count


def run_stages(stages: list[tuple[StageSpec, list[TrainingItem]]]) -> dict[str, Any]:
    """Run the stages one after the other, as a worker of a job does; what is left in memory after them."""
    for spec, items in stages:
        loop.run_stage(spec, items)
    gc.collect()
    alive = [value for value in gc.get_objects() if type(value) is deepspeed.DeepSpeedEngine]  # isinstance would wake lazy modules
    return {"engines": len(alive)}


def losses(spec: StageSpec) -> list[float]:
    return [line["loss"] for line in log_lines(spec)]


def log_lines(spec: StageSpec) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(spec.folder) / "log.jsonl").read_text().splitlines()]
