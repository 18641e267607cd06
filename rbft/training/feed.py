"""What one worker's engine is fed with: the micro-batches of each optimiser step, decoded and encoded ahead of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rbft.data.samples import SampleEncoder, TrainingItem
from rbft.models.batches import MicroBatch, pack, pad
from rbft.models.chat import ChatAdapter, EncodedSample
from rbft.training.grouping import balanced_groups, similar_groups
from rbft.training.order import worker_share
from rbft.training.stage import StageSpec
from rbft.video.clip_cache import ClipCache
from rbft.video.pool import DecodePool


@dataclass(frozen=True)
class StepBatch:
    """One worker's share of one global batch."""

    micro_batches: Sequence[MicroBatch]
    """On the CPU, as many on every rank."""
    ids: Sequence[str]
    """Of the videos in it."""
    waited_s: float
    """How long the step had to wait for it."""


class Feed:
    """The share of `rank` of `num_workers` in every one of `batches` (item indices, None is a filler), in order. A context manager."""

    def __init__(
        self,
        spec: StageSpec,
        adapter: ChatAdapter,
        items: Sequence[TrainingItem],
        batches: Sequence[list[int | None]],
        rank: int,
        num_workers: int,
    ) -> None:
        self._training, self._adapter = spec.training, adapter
        self._shares = [[None if i is None else items[i] for i in worker_share(batch, rank, num_workers)] for batch in batches]
        num_threads = max(1, int(spec.training.num_cpus))
        self._stack = contextlib.ExitStack()
        pool = self._stack.enter_context(DecodePool(num_threads, spec.video.timeout_s, spec.video.memory_limit_bytes))
        clips = ClipCache(spec.training.clip_cache_folder, spec.training.clip_cache_bytes)
        self._encoder = self._stack.enter_context(contextlib.closing(SampleEncoder(adapter, pool, num_threads, clips)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[StepBatch]:
        samples = self._encoder.stream(item for share in self._shares for item in share)
        for share in self._shares:
            started = time.monotonic()
            micro_batches = self._micro_batches([next(samples) for _ in share])
            ids = [item.example.id for item in share if item is not None]
            yield StepBatch(micro_batches, ids, time.monotonic() - started)

    def bad_videos(self) -> dict[str, str]:
        """Id -> error code of the videos of this worker that could not be used so far."""
        return {id_: error.code for id_, error in dict(self._encoder.errors).items()}

    def _micro_batches(self, samples: Sequence[EncodedSample]) -> list[MicroBatch]:
        is_packed = self._training.batching == "packed"
        group, join = (balanced_groups, pack) if is_packed else (similar_groups, pad)
        lengths = [len(sample.input_ids_L) for sample in samples]
        return [join([samples[i] for i in indices], self._adapter) for indices in group(lengths, self._training.micro_batch_size)]
