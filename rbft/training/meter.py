"""How fast a stage trains and what it takes: samples/s, tokens/s, MFU, memory, share of the time spent waiting for data."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist

from rbft.models.chat import IGNORE_INDEX
from rbft.models.flops import ModelFlops, peak_flops
from rbft.training.feed import StepBatch

NUM_STEPS = 20
"""Rates are over the last so many steps, as batches of mixed lengths differ."""


@dataclass(frozen=True)
class _Step:
    """One step of all ranks together."""

    seconds: float
    """From asking for the batch to the end of the step, on the slowest rank. Checkpoints and validation lie between steps."""
    waited_s: float
    """Of these, for the batch: on the rank that waited longest, as the others wait for that one."""
    memory_bytes: float
    """On the rank with the most."""
    num_samples: float
    num_tokens: float
    num_supervised: float
    flops: float


class Meter:
    """One rank's part in measuring; every rank has one and calls `measure` after every step."""

    def __init__(self, flops: ModelFlops, device: torch.device, precision: str) -> None:
        self._flops, self._device = flops, device
        on_gpu = device.type == "cuda"
        # The table is of bfloat16; in float32 the same device has another peak.
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if on_gpu and precision == "bf16" else None
        self._process = psutil.Process()
        self._steps: deque[_Step] = deque(maxlen=NUM_STEPS)
        self._started = time.monotonic()

    def start(self) -> None:
        """The batch is here; the step begins."""
        self._started = time.monotonic()

    def measure(self, batch: StepBatch) -> dict[str, float]:
        """The scalars of the step that ends now, the same on every rank; `mfu` only where the device's peak is known.

        mfu = FLOPs of the samples, forward and backward (`rbft.models.flops`) / (seconds x number of devices x peak FLOP/s)
        """
        sizes = [size for micro_batch in batch.micro_batches for size in sample_sizes(micro_batch) if size.num_supervised]
        here = _Step(
            seconds=batch.waited_s + time.monotonic() - self._started,
            waited_s=batch.waited_s,
            memory_bytes=self._memory_bytes(),
            num_samples=len(sizes),
            num_tokens=sum(size.num_tokens for size in sizes),
            num_supervised=sum(size.num_supervised for size in sizes),
            flops=sum(self._flops.of_sample(size.num_tokens, size.num_supervised, size.grid_thw) for size in sizes),
        )
        self._steps.append(_of_all_ranks(here, self._device))
        seconds = sum(step.seconds for step in self._steps)
        flops_per_s = sum(step.flops for step in self._steps) / seconds / dist.get_world_size()
        rates = {
            "step_s": self._steps[-1].seconds,
            "samples_per_s": sum(step.num_samples for step in self._steps) / seconds,
            "tokens_per_s": sum(step.num_tokens for step in self._steps) / seconds,
            "supervised_tokens_per_s": sum(step.num_supervised for step in self._steps) / seconds,
            "tflops_per_s": flops_per_s / 1e12,
            "data_wait_share": sum(step.waited_s for step in self._steps) / seconds,
            "memory_bytes": self._steps[-1].memory_bytes,
        }
        return rates if self._peak is None else rates | {"mfu": flops_per_s / self._peak}

    def _memory_bytes(self) -> float:
        """The most that tensors took on the GPU so far; on the CPU what the process takes now."""
        on_gpu = self._device.type == "cuda"
        return float(torch.cuda.max_memory_allocated(self._device) if on_gpu else self._process.memory_info().rss)


@dataclass(frozen=True)
class SampleSize:
    """What of a sample's size decides its cost."""

    num_tokens: int
    num_supervised: int
    grid_thw: tuple[int, int, int]
    """Its video in patches."""


def sample_sizes(batch: Mapping[str, Any]) -> Sequence[SampleSize]:
    """One a sample of `batch`, keyword arguments of `rbft.training.loss.SupervisedLoss`: packed end to end in one row, or one a row."""
    supervised_BL = batch["labels"] != IGNORE_INDEX
    if "cu_seq_lens_q" in batch:
        lengths = batch["cu_seq_lens_q"].diff().tolist()
        supervised = [int(part.sum()) for part in supervised_BL[0].split(lengths)]
    else:
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        supervised = supervised_BL.sum(dim=1).tolist()
    grids: list[Any] = batch["video_grid_thw"].tolist()
    return [SampleSize(length, count, tuple(grid)) for length, count, grid in zip(lengths, supervised, grids, strict=True)]


def _of_all_ranks(here: _Step, device: torch.device) -> _Step:
    """Sums of what ranks share, the largest of what they have in common."""
    mine = torch.tensor(astuple(here), dtype=torch.float64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    found = torch.stack(everyone).cpu()
    return _Step(*found[:, :3].amax(dim=0).tolist(), *found[:, 3:].sum(dim=0).tolist())
