"""One stage of fine-tuning on one worker; every worker of the process group runs this with the same arguments.

    item order -> this worker's share -> decode and encode ahead -> forward, backward, step -> validate -> log -> checkpoint -> final/

Bitwise repeatable on the same CPU type with the same number of workers; a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rbft import artifacts
from rbft.data.samples import TrainingItem, weigh_replay
from rbft.errors import TrainingError
from rbft.models.card import model_card
from rbft.models.chat import ChatAdapter
from rbft.models.flops import model_flops
from rbft.models.load import load_model, make_card, save_model
from rbft.training.checkpoints import load_latest, load_step, save_checkpoint
from rbft.training.deepspeed_engine import build_engine, check_rates, forward_backward, free_engine, set_rates, whole_state_dict
from rbft.training.feed import Feed
from rbft.training.kernels import check_kernels
from rbft.training.log import open_log
from rbft.training.meter import Meter
from rbft.training.order import global_batches
from rbft.training.stage import StageSpec
from rbft.training.validation import Validations, best_scores, probe_rationales, validate, validation_steps
from rbft.training.watch import SpikeWatch, gather_ids, keep_gradient_norm, require_finite_gradient, stop_all_ranks

_LOG = logging.getLogger(__name__)


def run_stage(spec: StageSpec, items: list[TrainingItem]) -> Path:
    """Train `items` to the end and write `final/`; the path of it. Goes on from the newest checkpoint in `spec.folder`.

    Raises `TrainingError` if there is nothing to train on or too many videos are unusable.
    """
    if not items:
        raise TrainingError(f"{spec.name}: no training items; check the labels and splits of the manifest")
    final = Path(spec.folder) / "final"
    precision = "bfloat16" if spec.training.precision == "bf16" else "float32"
    adapter = ChatAdapter(spec.model.path, spec.video.spec())
    engine = build_engine(load_model(spec.model.path, precision, spec.model.attention), spec.training, spec.optimiser, adapter.patches)
    try:
        check_rates(engine, spec.optimiser)
        keep_gradient_norm(engine)
        bad_videos = _train(engine, adapter, spec, weigh_replay(items, spec.num_replay, adapter))
        probe_rationales(engine, adapter, spec, "after")
        _check_bad_share(spec, bad_videos, len(items))
        _write_final(engine, adapter, spec, final)
    finally:
        free_engine(engine)
    return final


def _train(engine: Any, adapter: ChatAdapter, spec: StageSpec, items: list[TrainingItem]) -> dict[str, str]:
    """Take all optimiser steps that are left; id -> error code of the videos that could not be used, those of all ranks.

    The engine then holds the weights of the last step, or of the best validation if there was any.
    """
    training, checkpoints = spec.training, Path(spec.folder) / "checkpoints"
    rank = dist.get_rank()
    batches = global_batches(len(items), training.global_batch_size, spec.epochs, spec.seed, spec.classes)
    validate_after = validation_steps(training.validation, len(batches), spec.epochs) if spec.validation else frozenset()
    first_step, bad_videos = load_latest(engine, checkpoints, spec.fingerprint)
    validations = Validations(spec, first_step)
    if first_step == 0:
        probe_rationales(engine, adapter, spec, "before")

    last_step = first_step
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(open_log(spec, first_step))) if rank == 0 else None
        watch = SpikeWatch.of_all_ranks(log.losses if log is not None else ())
        left = [] if validations.is_over else batches[first_step:]
        feed = stack.enter_context(Feed(spec, adapter, items, left, rank, training.num_workers))
        meter = Meter(model_flops(engine.module.model), engine.device, training.precision)
        started = time.monotonic()
        for last_step, batch in enumerate(feed, first_step + 1):
            if last_step == first_step + 1 and training.check_kernels:
                check_kernels(engine, batch.micro_batches[0], training.precision)
            meter.start()
            rates = set_rates(engine, last_step - 1, len(batches), spec.optimiser.warmup_ratio)
            outcome = forward_backward(engine, batch.micro_batches)
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
                "elapsed_s": elapsed_s,
                "eta_s": elapsed_s / (last_step - first_step) * (len(batches) - last_step),
                **rates,
            }
            if watch.is_spike(outcome.loss):
                ids = sorted(id_ for by_rank in gather_ids(batch.ids) for id_ in by_rank)
                line |= {"spike": True, "spike_ids": ids}
                if rank == 0:
                    _LOG.warning("loss spike stage=%s step=%d loss=%.4f ids=%s", spec.name, last_step, outcome.loss, ",".join(ids))
            is_best = False
            if last_step in validate_after:
                found = validate(engine, adapter, spec, last_step)
                is_best = validations.add(found)
                line |= {f"validation_{name}": score for name, score in found.scores.items()}
            is_end = last_step == len(batches) or validations.is_over
            if is_end and last_step < len(batches):
                line["ended_early"] = True
            if log is not None:
                log.write(line)
            if is_end or is_best or last_step % training.checkpoint_every_steps == 0:
                bad_videos |= _of_all_ranks(feed.bad_videos())
                keep = () if validations.best is None else (validations.best.step,)
                save_checkpoint(engine, checkpoints, last_step, spec.fingerprint, bad_videos, keep)
            if is_end:
                break
    if validations.best is not None and validations.best.step != last_step:
        load_step(engine, checkpoints, validations.best.step, spec.fingerprint)
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
    weights = whole_state_dict(engine)
    if weights is not None:
        card = make_card(spec.task, spec.video.spec(), spec.lineage | {"fingerprint": spec.fingerprint})
        save_model(engine.module.model, weights, adapter.processor, final, card)
        (final / "README.md").write_text(model_card(spec.task, spec.video.spec(), card["lineage"], best_scores(spec)), encoding="utf-8")
        artifacts.publish(final.resolve(), str(final), spec.fingerprint, spec.lineage)
    dist.barrier()
