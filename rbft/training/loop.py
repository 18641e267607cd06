"""One stage of fine-tuning on one worker; every worker of the process group runs this with the same arguments.

    item order -> this worker's share -> decode and encode ahead -> forward, backward, step -> log -> checkpoint -> final/

Bitwise repeatable on the same CPU type with the same number of workers; a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rbft import artifacts
from rbft.data.samples import SampleEncoder, TrainingItem
from rbft.errors import TrainingError
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model, make_card, save_model
from rbft.training.checkpoints import load_latest, save_checkpoint
from rbft.training.deepspeed_engine import build_engine, check_rates, forward_backward, set_rates, whole_state_dict
from rbft.training.order import global_batches, worker_share
from rbft.training.stage import StageSpec
from rbft.video.pool import DecodePool


def run_stage(spec: StageSpec, items: list[TrainingItem]) -> Path:
    """Train `items` to the end and write `final/`; the path of it. Goes on from the newest checkpoint in `spec.folder`.

    Raises `TrainingError` if there is nothing to train on or too many videos are unusable.
    """
    folder = Path(spec.folder)
    final = folder / "final"
    if not items:
        raise TrainingError(f"{spec.name}: no training items; check the labels and splits of the manifest")
    training = spec.training
    rank, num_workers = dist.get_rank(), training.num_workers
    adapter = ChatAdapter(spec.model.path, spec.video.spec())
    model = load_model(spec.model.path, "bfloat16" if training.precision == "bf16" else "float32", spec.model.attention)
    engine = build_engine(model, training, spec.optimiser)
    check_rates(engine, spec.optimiser)
    batches = global_batches(len(items), training.global_batch_size, spec.epochs, spec.seed)
    first_step = load_latest(engine, folder / "checkpoints", spec.fingerprint)
    log = _StageLog(folder, first_step) if rank == 0 else None
    num_threads = max(1, int(training.num_cpus))

    with DecodePool(num_threads, spec.video.timeout_s, spec.video.memory_limit_bytes) as pool:
        encoder = SampleEncoder(adapter, pool, num_threads)
        mine = (index for batch in batches[first_step:] for index in worker_share(batch, rank, num_workers))
        samples = encoder.stream(None if index is None else items[index] for index in mine)
        started = time.monotonic()
        for step in range(first_step, len(batches)):
            waiting = time.monotonic()
            micro_batches = [_take(samples, training.micro_batch_size, adapter) for _ in range(training.accumulation_steps)]
            waited_s = time.monotonic() - waiting
            rates = set_rates(engine, step, len(batches), spec.optimiser.warmup_ratio)
            loss, num_tokens = forward_backward(engine, micro_batches)
            elapsed_s = time.monotonic() - started
            steps_done = step + 1
            scalars = {
                "step": steps_done,
                "num_steps": len(batches),
                "epoch": steps_done * spec.epochs / len(batches),
                "loss": loss,
                "grad_norm": float(engine.get_global_grad_norm() or 0.0),
                "supervised_tokens": num_tokens,
                "samples_per_s": (steps_done - first_step) * training.global_batch_size / elapsed_s,
                "data_wait_s": waited_s,
                "elapsed_s": elapsed_s,
                "eta_s": elapsed_s / (steps_done - first_step) * (len(batches) - steps_done),
                **rates,
            }
            if log is not None:
                log.write(scalars)
            if steps_done % training.checkpoint_every_steps == 0 or steps_done == len(batches):
                save_checkpoint(engine, folder / "checkpoints", steps_done, spec.fingerprint)
        encoder.close()
    _check_bad_share(spec, encoder, len(items))
    if log is not None:
        log.close()
    _write_final(engine, adapter, spec, final)
    return final


def _take(samples: Iterator[Any], count: int, adapter: ChatAdapter) -> dict[str, Any]:
    return adapter.collate([next(samples) for _ in range(count)])


def _check_bad_share(spec: StageSpec, encoder: SampleEncoder, num_items: int) -> None:
    """All ranks agree on the videos that could not be used; too many of them fail the stage."""
    gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, {id_: error.code for id_, error in encoder.errors.items()})
    bad = {id_: code for part in gathered for id_, code in part.items()}
    if len(bad) > spec.max_bad_fraction * num_items:
        some = ", ".join(f"{id_} ({code})" for id_, code in sorted(bad.items())[:10])
        raise TrainingError(f"{spec.name}: {len(bad)} of {num_items} videos could not be used, more than max_bad_fraction: {some}")


def _write_final(engine: Any, adapter: ChatAdapter, spec: StageSpec, final: Path) -> None:
    weights = whole_state_dict(engine)
    if weights is not None:
        from transformers import AutoModelForImageTextToText

        model = engine.module.model
        card = make_card(spec.task, spec.video.spec(), spec.lineage | {"fingerprint": spec.fingerprint})
        whole = model if not any(hasattr(p, "ds_id") for p in model.parameters()) else AutoModelForImageTextToText.from_config(model.config)
        if whole is not model:
            whole.load_state_dict(weights, strict=False)
            whole.tie_weights()
            whole.to(next(iter(weights.values())).dtype)
        save_model(whole, adapter.processor, final, card)
        artifacts.publish(final.resolve(), str(final), spec.fingerprint, spec.lineage)
    dist.barrier()


class _StageLog:
    """log.jsonl and TensorBoard scalars of a stage. A resumed stage drops the lines after the step it resumes from."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= first_step] if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in kept))
        self._lines = path.open("a")
        self._scalars = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, scalars: dict[str, float]) -> None:
        self._lines.write(json.dumps(scalars) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            if name not in ("step", "num_steps"):
                self._scalars.add_scalar(name, value, int(scalars["step"]))

    def close(self) -> None:
        self._lines.close()
        self._scalars.close()
