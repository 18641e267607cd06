"""One stage of fine-tuning on one worker; every worker of the process group runs this with the same arguments.

    item order -> this worker's share -> decode and encode ahead -> forward, backward, step -> log -> checkpoint -> final/

Bitwise repeatable on the same CPU type with the same number of workers; a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rbft import artifacts
from rbft.data.samples import TrainingItem
from rbft.errors import TrainingError
from rbft.models.adapters import merge_adapter, save_adapter
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model, make_card, save_model
from rbft.seeds import derive_seed
from rbft.training.checkpoints import load_latest, save_checkpoint
from rbft.training.deepspeed_engine import build_engine, check_rates, forward_backward, free_engine, set_rates, whole_state_dict
from rbft.training.feed import Feed
from rbft.training.log import StageLog
from rbft.training.order import global_batches
from rbft.training.stage import StageSpec


def run_stage(spec: StageSpec, items: list[TrainingItem]) -> Path:
    """Train `items` to the end and write `final/`; the path of it. Goes on from the newest checkpoint in `spec.folder`.

    Raises `TrainingError` if there is nothing to train on or too many videos are unusable.
    """
    if not items:
        raise TrainingError(f"{spec.name}: no training items; check the labels and splits of the manifest")
    final = Path(spec.folder) / "final"
    precision = "bfloat16" if spec.training.precision == "bf16" else "float32"
    adapter = ChatAdapter(spec.model.path, spec.video.spec())
    quantised = spec.training.lora is not None and spec.training.lora.quantised_base != "none"
    model = load_model(spec.model.path, precision, spec.model.attention, quantised)
    engine = build_engine(model, spec.training, spec.optimiser, spec.seed)
    try:
        check_rates(engine, spec.optimiser)
        bad_videos = _train(engine, adapter, spec, items)
        _check_bad_share(spec, bad_videos, len(items))
        _write_final(engine, adapter, spec, final)
    finally:
        free_engine(engine)
    return final


def _train(engine: Any, adapter: ChatAdapter, spec: StageSpec, items: list[TrainingItem]) -> dict[str, str]:
    """Take all optimiser steps that are left; id -> error code of the videos that could not be used, those of all ranks."""
    training, checkpoints = spec.training, Path(spec.folder) / "checkpoints"
    rank = dist.get_rank()
    batches = global_batches(len(items), training.global_batch_size, spec.epochs, spec.seed)
    first_step, bad_videos = load_latest(engine, checkpoints, spec.fingerprint)

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(StageLog(Path(spec.folder), first_step))) if rank == 0 else None
        feed = stack.enter_context(Feed(spec, adapter, items, batches[first_step:], rank, training.num_workers))
        started = time.monotonic()
        for step, batch in enumerate(feed, first_step):
            rates = set_rates(engine, step, len(batches), spec.optimiser.warmup_ratio)
            # What dropout draws depends on the step alone, so that a resumed stage draws the same.
            torch.manual_seed(derive_seed(spec.seed, "dropout", step, rank))
            outcome = forward_backward(engine, batch.micro_batches)
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
                "elapsed_s": elapsed_s,
                "eta_s": elapsed_s / (steps_done - first_step) * (len(batches) - steps_done),
                **rates,
            }
            if log is not None:
                log.write(scalars)
            if steps_done % training.checkpoint_every_steps == 0 or steps_done == len(batches):
                bad_videos |= _of_all_ranks(feed.bad_videos())
                save_checkpoint(engine, checkpoints, steps_done, spec.fingerprint, bad_videos)
    return bad_videos


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
    with_lora = spec.training.lora is not None
    weights = whole_state_dict(engine, adapters_only=with_lora)
    if weights is not None:
        card, model = make_card(spec.task, spec.video.spec(), spec.lineage | {"fingerprint": spec.fingerprint}), engine.module.model
        if with_lora:
            beside = final.with_name("adapter")
            save_adapter(model, weights, spec.model.path, beside, card)
            base = spec.lineage.get("base") or artifacts.model_fingerprint(spec.model.path)
            artifacts.publish(beside.resolve(), str(beside), spec.fingerprint, spec.lineage | {"base": base})
            # From the files, as `rbft export` does: base weights have not changed, and may be held here in parts or in 4 bits.
            model = merge_adapter(beside, spec.model.path)
            weights = dict(model.named_parameters())
        save_model(model, weights, adapter.processor, final, card)
        artifacts.publish(final.resolve(), str(final), spec.fingerprint, spec.lineage)
    dist.barrier()
