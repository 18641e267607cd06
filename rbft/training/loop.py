"""One stage of fine-tuning on one worker; every worker of the process group runs this with the same arguments.

    item order -> this worker's share -> decode and encode ahead -> forward, backward, step -> validate -> log -> checkpoint -> final/

Where the run lies in a store, all that lasts of it goes there as it is made (`rbft.training.mirror`).

Bitwise repeatable on the same CPU type with the same number of workers; a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rbft.config import ValidationConfig
from rbft.data.samples import TrainingItem, weigh_replay
from rbft.errors import TrainingError, TrainingStopped
from rbft.log_fields import add_fields
from rbft.model_store import on_this_node
from rbft.models.chat import ChatAdapter
from rbft.models.flops import model_flops
from rbft.models.load import load_model
from rbft.seeds import derive_seed
from rbft.training.checkpoints import CheckpointWriter, checkpoint_path, load_checkpoint, load_latest
from rbft.training.deepspeed_engine import build_engine, check_rates, forward_backward, free_engine, set_rates
from rbft.training.feed import Feed
from rbft.training.final import write_final
from rbft.training.kernels import check_kernels
from rbft.training.log import open_log
from rbft.training.meter import Meter
from rbft.training.mirror import Mirror
from rbft.training.order import global_batches
from rbft.training.stage import StageSpec
from rbft.training.stop import Controls, StepFlags, StopRequest
from rbft.training.validation import Validations, mean_loss, probe_rationales, validate, validation_steps
from rbft.training.watch import SpikeWatch, gather_ids, keep_gradient_norm, require_finite_gradient, stop_all_ranks

_LOG = logging.getLogger(__name__)


def run_stage(spec: StageSpec, items: list[TrainingItem], controls: Controls | None = None) -> str:
    """Train `items` to the end and write `final/`; where it is. Goes on from the newest checkpoint in `spec.folder` or `spec.store`.

    There are as many workers as the process group has. `controls` can stop it: all workers then save and raise `TrainingStopped`.
    Raises `TrainingError` if there is nothing to train on or too many videos are unusable, `ConfigError` if the number of workers is none
    of `training.worker_counts`.
    """
    if not items:
        raise TrainingError(f"{spec.name}: no training items; check the labels and splits of the manifest")
    add_fields(run=str(spec.lineage.get("run", spec.task.name)), stage=spec.name, rank=dist.get_rank())
    final = Path(spec.folder) / "final"
    spec = replace(spec, training=spec.training.for_workers(dist.get_world_size()), model=on_this_node(spec.model))
    precision = "bfloat16" if spec.training.precision == "bf16" else "float32"
    mirror = Mirror(spec)
    mirror.fetch()
    adapter = ChatAdapter(spec.model.path, spec.video.spec())
    quantised = spec.training.lora is not None and spec.training.lora.quantised_base != "none"
    model = load_model(spec.model.path, precision, spec.model.attention, quantised)
    engine = build_engine(model, spec.training, spec.optimiser, adapter.patches, spec.seed)
    with contextlib.ExitStack() as stage:
        stage.callback(free_engine, engine)
        check_rates(engine, spec.training, spec.optimiser)
        keep_gradient_norm(engine)
        weighed = weigh_replay(items, spec.num_replay, adapter)
        bad_videos = _train(engine, adapter, spec, weighed, controls or StopRequest(), mirror, stage)
        probe_rationales(engine, adapter, spec, "after")
        _check_bad_share(spec, bad_videos, len(items))
        write_final(engine, adapter, spec, final)
    mirror.finish()  # when the logs are closed, too
    return f"{spec.home}/final"


def _train(
    engine: Any,
    adapter: ChatAdapter,
    spec: StageSpec,
    items: list[TrainingItem],
    controls: Controls,
    mirror: Mirror,
    stage: contextlib.ExitStack,
) -> dict[str, str]:
    """Take all optimiser steps that are left; id -> error code of the videos that could not be used, those of all ranks.

    The engine then holds the weights of the last step, or of the best validation if there was any. The log is open until `stage` ends: it
    tells how.
    """
    training, checkpoints = spec.training, Path(spec.folder) / "checkpoints"
    rank = dist.get_rank()
    batches = global_batches(len(items), training.global_batch_size, spec.epochs, spec.seed, spec.classes)
    validate_after = validation_steps(training.validation, len(batches), spec.epochs) if spec.validation else frozenset()
    epoch_ends = validation_steps(ValidationConfig(every_epochs=1), len(batches), spec.epochs) if spec.held_out else frozenset()
    first_step, bad_videos = load_latest(engine, checkpoints, spec.fingerprint)
    check_rates(engine, training, spec.optimiser)
    validations = Validations(spec, first_step)
    if first_step == 0:
        probe_rationales(engine, adapter, spec, "before")

    last_step = first_step
    with contextlib.ExitStack() as stack:
        log = stage.enter_context(open_log(spec, first_step)) if rank == 0 else None
        watch = SpikeWatch.of_all_ranks(log.losses if log is not None else ())
        stack.enter_context(mirror.following_logs())
        kept = training.keep_checkpoints
        writer = stack.enter_context(CheckpointWriter(engine, checkpoints, spec.fingerprint, kept, mirror.add_checkpoint))
        left = [] if validations.is_over else batches[first_step:]
        feed = stack.enter_context(Feed(spec, adapter, items, left, rank, training.num_workers))
        meter = Meter(model_flops(engine.module.model), engine.device, training.precision)
        flags, held_up_s = StepFlags(training, controls), 0.0
        started = time.monotonic()
        for last_step, batch in enumerate(feed, first_step + 1):
            if last_step == first_step + 1 and training.check_kernels:
                check_kernels(engine, batch.micro_batches[0], training.precision)
            add_fields(step=last_step)
            meter.start()
            rates = set_rates(engine, last_step - 1, len(batches), spec.optimiser.warmup_ratio)
            # What dropout draws depends on the step alone, so that a resumed stage draws the same.
            torch.manual_seed(derive_seed(spec.seed, "dropout", last_step - 1, rank))
            outcome = forward_backward(engine, batch.micro_batches, flags.here(writer.has_failed))
            if not outcome.is_finite:
                stop_all_ranks("the loss", last_step, outcome.bad_ranks, batch.ids)
            grad_norm = require_finite_gradient(engine, last_step, batch.ids)
            metered = meter.measure(batch)
            elapsed_s = time.monotonic() - started
            line: dict[str, Any] = {
                "step": last_step,
                "num_steps": len(batches),
                "epoch": last_step * spec.epochs / len(batches),
                "loss": outcome.loss,
                "grad_norm": grad_norm,
                "supervised_tokens": outcome.num_tokens,
                **metered,
                "data_wait_s": batch.waited_s,
                "checkpoint_wait_s": held_up_s,
                "elapsed_s": elapsed_s,
                "eta_s": elapsed_s / (last_step - first_step) * (len(batches) - last_step),
                **rates,
            }
            if watch.is_spike(outcome.loss):
                line |= _tell_spike(spec, last_step, outcome.loss, batch.ids)
            is_best = False
            if last_step in validate_after:
                found = validate(engine, adapter, spec, last_step)
                is_best = validations.add(found)
                line |= {f"validation_{name}": score for name, score in found.scores.items()}
            if last_step in epoch_ends:
                line["validation_loss"] = mean_loss(engine, adapter, spec, spec.held_out)
            is_last = last_step == len(batches) or validations.is_over
            if is_last and last_step < len(batches):
                line["ended_early"] = True
            if log is not None:
                log.write(line)
            end, held_up_s = flags.agreed(last_step, outcome.flags), 0.0
            if end.write_failed:
                writer.wait()
            if end.saves or end.stop_reason is not None or is_best or is_last:
                bad_videos |= _of_all_ranks(feed.bad_videos())
                held_up_s = writer.save(last_step, bad_videos, () if validations.best is None else (validations.best.step,))
            if is_last:
                break
            if end.stop_reason is not None:
                writer.wait()
                raise _stopped(spec, end.stop_reason, last_step, len(batches))
        writer.wait()
    if validations.best is not None and validations.best.step != last_step:
        mirror.fetch_checkpoint(validations.best.step)
        load_checkpoint(engine, checkpoint_path(checkpoints, validations.best.step), spec.fingerprint)
    return bad_videos


def _tell_spike(spec: StageSpec, step: int, loss: float, ids: Sequence[str]) -> dict[str, Any]:
    """What the log's line of the step says of it; every rank calls this with its own `ids`."""
    of_all_ranks = sorted(id_ for by_rank in gather_ids(ids) for id_ in by_rank)
    if dist.get_rank() == 0:
        _LOG.warning("loss spike stage=%s step=%d loss=%.4f ids=%s", spec.name, step, loss, ",".join(of_all_ranks))
    return {"spike": True, "spike_ids": of_all_ranks}


def _stopped(spec: StageSpec, reason: str, step: int, num_steps: int) -> TrainingStopped:
    where = f"{spec.home}/checkpoints/{checkpoint_path(Path(), step)}"
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
