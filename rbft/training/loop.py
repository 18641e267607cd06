"""One stage of fine-tuning on one worker; every worker of the process group runs this with the same arguments.

    item order -> this worker's share -> decode and encode ahead -> forward, backward, step -> log -> checkpoint -> final/

Bitwise repeatable on the same CPU type with the same number of workers; a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rbft import artifacts
from rbft.data.samples import TrainingItem
from rbft.errors import TrainingError, TrainingStopped
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model, make_card, save_model
from rbft.training.checkpoints import CheckpointWriter, checkpoint_path, load_latest
from rbft.training.deepspeed_engine import build_engine, check_rates, forward_backward, free_engine, set_rates, whole_state_dict
from rbft.training.feed import Feed
from rbft.training.log import StageLog
from rbft.training.order import global_batches
from rbft.training.stage import StageSpec
from rbft.training.stop import Controls, StepFlags, StopRequest


def run_stage(spec: StageSpec, items: list[TrainingItem], controls: Controls | None = None) -> Path:
    """Train `items` to the end and write `final/`; the path of it. Goes on from the newest checkpoint in `spec.folder`.

    There are as many workers as the process group has. `controls` can stop it: all workers then save and raise `TrainingStopped`.
    Raises `TrainingError` if there is nothing to train on or too many videos are unusable, `ConfigError` if the number of workers is none
    of `training.worker_counts`.
    """
    if not items:
        raise TrainingError(f"{spec.name}: no training items; check the labels and splits of the manifest")
    final = Path(spec.folder) / "final"
    spec = replace(spec, training=spec.training.for_workers(dist.get_world_size()))
    precision = "bfloat16" if spec.training.precision == "bf16" else "float32"
    adapter = ChatAdapter(spec.model.path, spec.video.spec())
    engine = build_engine(load_model(spec.model.path, precision, spec.model.attention), spec.training, spec.optimiser)
    try:
        check_rates(engine, spec.optimiser)
        bad_videos = _train(engine, adapter, spec, items, controls or StopRequest())
        _check_bad_share(spec, bad_videos, len(items))
        _write_final(engine, adapter, spec, final)
    finally:
        free_engine(engine)
    return final


def _train(engine: Any, adapter: ChatAdapter, spec: StageSpec, items: list[TrainingItem], controls: Controls) -> dict[str, str]:
    """Take all optimiser steps that are left; id -> error code of the videos that could not be used, those of all ranks."""
    training, checkpoints = spec.training, Path(spec.folder) / "checkpoints"
    rank = dist.get_rank()
    batches = global_batches(len(items), training.global_batch_size, spec.epochs, spec.seed)
    first_step, bad_videos = load_latest(engine, checkpoints, spec.fingerprint)

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(StageLog(Path(spec.folder), first_step))) if rank == 0 else None
        writer = stack.enter_context(CheckpointWriter(engine, checkpoints, spec.fingerprint, training.keep_checkpoints))
        feed = stack.enter_context(Feed(spec, adapter, items, batches[first_step:], rank, training.num_workers))
        flags, held_up_s = StepFlags(training, controls), 0.0
        started = time.monotonic()
        for step, batch in enumerate(feed, first_step):
            rates = set_rates(engine, step, len(batches), spec.optimiser.warmup_ratio)
            outcome = forward_backward(engine, batch.micro_batches, flags.here(writer.has_failed))
            elapsed_s = time.monotonic() - started
            steps_done = step + 1
            scalars = {
                "step": steps_done,
                "num_steps": len(batches),
                "epoch": steps_done * spec.epochs / len(batches),
                "loss": outcome.loss,
                "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                "supervised_tokens": outcome.num_tokens,
                "samples_per_s": (steps_done - first_step) * training.global_batch_size / elapsed_s,
                "data_wait_s": batch.waited_s,
                "checkpoint_wait_s": held_up_s,
                "elapsed_s": elapsed_s,
                "eta_s": elapsed_s / (steps_done - first_step) * (len(batches) - steps_done),
                **rates,
            }
            if log is not None:
                log.write(scalars)
            end, held_up_s = flags.agreed(steps_done, outcome.flags), 0.0
            if end.write_failed:
                writer.wait()
            if end.saves or end.stop_reason is not None or steps_done == len(batches):
                bad_videos |= _of_all_ranks(feed.bad_videos())
                held_up_s = writer.save(steps_done, bad_videos)
            if end.stop_reason is not None and steps_done < len(batches):
                writer.wait()
                raise _stopped(spec, end.stop_reason, steps_done, len(batches))
        writer.wait()
    return bad_videos


def _stopped(spec: StageSpec, reason: str, step: int, num_steps: int) -> TrainingStopped:
    where = checkpoint_path(Path(spec.folder) / "checkpoints", step)
    return TrainingStopped(
        f"{spec.name}: stopped after step {step} of {num_steps} ({reason}); saved {where}, the same command goes on there"
    )


def _of_all_ranks(bad_videos: dict[str, str]) -> dict[str, str]:
    gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, bad_videos)
    return {id_: code for part in gathered for id_, code in part.items()}


def _check_bad_share(spec: StageSpec, bad_videos: dict[str, str], num_items: int) -> None:
    """Too many videos that could not be used fail the stage, on every rank alike."""
    if len(bad_videos) > spec.max_bad_fraction * num_items:
        some = ", ".join(f"{id_} ({code})" for id_, code in sorted(bad_videos.items())[:10])
        raise TrainingError(f"{spec.name}: {len(bad_videos)} of {num_items} videos could not be used, more than max_bad_fraction: {some}")


def _write_final(engine: Any, adapter: ChatAdapter, spec: StageSpec, final: Path) -> None:
    weights = whole_state_dict(engine)
    if weights is not None:
        card = make_card(spec.task, spec.video.spec(), spec.lineage | {"fingerprint": spec.fingerprint})
        save_model(engine.module.model, weights, adapter.processor, final, card)
        # The last ones; they change rounding only, and are no part of the fingerprint.
        workers = {"num_workers": dist.get_world_size(), "micro_batch_size": spec.training.micro_batch_size}
        artifacts.publish(final.resolve(), str(final), spec.fingerprint, spec.lineage | workers)
    dist.barrier()
