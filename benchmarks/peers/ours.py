"""This project's training step as `rbft.training.loop` takes it: the feed (with its cache of decoded clips), one worker, DeepSpeed.

Logging, validation and checkpoints are left out, as they are of the peers.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import deepspeed.runtime.engine  # noqa: F401  # loaded before memory is counted, as the peers' libraries are
import torch.distributed as dist
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration  # noqa: F401  # likewise

from benchmarks.peers.protocol import Request, Rounds, errors_told, read_request
from ray_jobs.run import versions
from rbft.config import ModelConfig, OptimiserConfig, TrainingConfig, VideoConfig, load_config
from rbft.data.samples import TrainingItem
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Example
from rbft.training.deepspeed_engine import build_engine, forward_backward, set_rates
from rbft.training.feed import Feed
from rbft.training.order import global_batches
from rbft.training.stage import StageSpec

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    request = read_request()
    rounds = Rounds(request)
    with errors_told(rounds), tempfile.NamedTemporaryFile() as rendezvous:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous.name}", rank=0, world_size=1)
        _train(request, rounds)
        dist.destroy_process_group()


def _train(request: Request, rounds: Rounds) -> None:
    spec = _stage(request)
    adapter = ChatAdapter(request.model, spec.video.spec())
    engine = build_engine(load_model(request.model, "float32"), spec.training, spec.optimiser, adapter.patches)
    rounds.watch(engine.module.model)
    items = [
        TrainingItem(Example(f"v{i}", video), spec.task.rationale_messages(), answer)
        for i, (video, answer) in enumerate(zip(request.extra["videos"], request.extra["answers"], strict=True))
    ]
    size = spec.training.global_batch_size
    batches: list[list[int | None]]
    if request.is_grouped:
        batches = global_batches(len(items), size, request.num_rounds, seed=0)
    else:
        batches = [[*range(start, start + size)] for start in range(0, len(items), size)] * request.num_rounds
    with Feed(spec, adapter, items, batches, 0, 1) as feed:
        steps = enumerate(feed)
        rounds.ready(**versions())
        for _ in rounds:
            for _ in range(request.steps_per_round):
                step, batch = next(steps)
                set_rates(engine, step, request.num_steps, 0.0)
                outcome = forward_backward(engine, batch.micro_batches)
                rounds.add_loss(step + 1, outcome.loss)
    rounds.finish()


def _stage(request: Request) -> StageSpec:
    variant: dict[str, Any] = {"batching": request.variant} if request.variant else {}
    training = TrainingConfig(
        num_workers=1,
        global_batch_size=request.micro_batch_size * request.accumulation_steps,
        micro_batch_size=request.micro_batch_size,
        precision="fp32",
        gradient_checkpointing=False,
        num_cpus=1,  # one thread that encodes, as the peers have one process
        num_gpus=0,
        clip_cache_folder=f"{request.folder}/clips",
        deepspeed={"zero_optimization": {"stage": 0}},
        **variant,
    )
    return StageSpec(
        name="benchmark",
        folder=request.folder,
        fingerprint="0" * 16,
        model=ModelConfig(path=request.model, dtype="float32"),
        task=load_config(ROOT / "configs/miniature.yaml").task,
        video=VideoConfig(**request.extra["video"]),
        training=training,
        optimiser=OptimiserConfig(
            lr_language=request.learning_rate, lr_vision=request.learning_rate, warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0
        ),
        epochs=request.num_rounds,
        seed=0,
        max_bad_fraction=0.0,
        lineage={},
    )


if __name__ == "__main__":
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed asks for them
    main()
