"""Fine-tuning a video classifier on one worker; every worker of the process group runs this with the same arguments.

The loss is the mean of the clips' cross-entropies over the global batch, weighted if classes are. The order of clips and what is cut out of
them depend on the seed alone. On a CPU bitwise repeatable with the same number of workers; a resumed training equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from rbft import artifacts
from rbft.baselines.classifier_checkpoints import load_newest, save_checkpoint
from rbft.baselines.classifier_optimiser import build_optimiser, leave_out_unused, set_rate
from rbft.baselines.classifier_spec import ClassifierSpec
from rbft.baselines.clip_blending import draw_blend
from rbft.baselines.clip_encoder import Cut
from rbft.baselines.video_classifier import VideoClassifier, classify, load_for_training, save_classifier
from rbft.data.clip_feed import ClipFeed
from rbft.data.samples import TrainingItem
from rbft.errors import ArtifactError, CheckpointError, TrainingError, TrainingStopped, VideoError
from rbft.records import Clip
from rbft.seeds import derive_seed
from rbft.training.checkpoints import checkpoint_path, complete_checkpoints
from rbft.training.log import StageLog
from rbft.training.mirror import Mirror
from rbft.training.order import global_batches, worker_share
from rbft.training.stop import Controls, StepFlags, StopRequest
from rbft.training.watch import stop_all_ranks
from rbft.video.clip_cache import ClipCache
from rbft.video.pool import DecodePool


def train_classifier(spec: ClassifierSpec, items: Sequence[TrainingItem], controls: Controls | None = None) -> str:
    """Train on `items` (their examples, labels and weights) to the end and write `final/`; where it is. Goes on from the newest
    checkpoint in `spec.folder` or `spec.store`.

    `controls` can stop it: all workers then save and raise `TrainingStopped`. Raises `TrainingError` if there is nothing to train on, the
    loss is no number or too many videos are unusable, `ConfigError` if the number of workers is none of the possible ones.
    """
    if not items:
        raise TrainingError(f"{spec.name}: no labelled training video; check the labels and splits of the manifest")
    workers = spec.training.for_workers(dist.get_world_size())
    mirror = Mirror(spec)
    mirror.fetch()
    own = spec.classifier
    classifier = load_for_training(own.path, spec.task.labels, spec.seed, own.num_frames, own.fit, own.num_clips, own.drop_path_rate)
    if own.gradient_checkpointing:
        classifier.model.gradient_checkpointing_enable()
    training = _Training(spec, classifier, items, StepFlags(workers, controls or StopRequest()), workers.accumulation_steps, mirror)
    bad_videos = training.run()
    if len(bad_videos) > spec.max_bad_fraction * len(items):
        some = ", ".join(f"{id_} ({code})" for id_, code in sorted(bad_videos.items())[:10])
        raise TrainingError(f"{spec.name}: {len(bad_videos)} of {len(items)} videos could not be used, more than max_bad_fraction: {some}")
    final = Path(spec.folder) / "final"
    if dist.get_rank() == 0:
        lineage = spec.lineage | {"num_workers": dist.get_world_size(), "micro_batch_size": own.micro_batch_size}
        save_classifier(classifier, spec.task, lineage | {"fingerprint": spec.fingerprint}, final, spec.video.backend)
        artifacts.publish(final.resolve(), str(final), spec.fingerprint, lineage)
    dist.barrier()
    mirror.finish()
    return f"{spec.home}/final"


@dataclass(frozen=True)
class _MicroBatch:
    """Clips of one worker that go through the model together; a filler, and a video that cannot be used, weighs nothing."""

    pixels_BTCHW: torch.Tensor
    targets_B: torch.Tensor
    weights_B: torch.Tensor

    def without_fillers(self) -> _MicroBatch:
        """Statistics of batches, and blends, are of real clips, where there is one."""
        is_real = self.weights_B > 0
        if is_real.all() or not is_real.any():
            return self
        return _MicroBatch(self.pixels_BTCHW[is_real], self.targets_B[is_real], self.weights_B[is_real])


class _Training:
    """All that the steps share."""

    def __init__(
        self,
        spec: ClassifierSpec,
        classifier: VideoClassifier,
        items: Sequence[TrainingItem],
        flags: StepFlags,
        num_accumulated: int,
        mirror: Mirror,
    ) -> None:
        self._spec, self._classifier, self._items, self._flags = spec, classifier, items, flags
        self._num_accumulated, self._mirror = num_accumulated, mirror
        self._rank, self._num_workers = dist.get_rank(), dist.get_world_size()
        self._device = device_for(spec.training.num_gpus)
        self._bad_videos: dict[str, str] = {}
        self._checkpoints = Path(spec.folder) / "checkpoints"
        model = classifier.model.to(self._device).train()
        form = classifier.encoder.form
        self._blank_TCHW = torch.zeros(form.num_frames, 3, form.size, form.size)
        leave_out_unused(model, model.main_input_name, self._blank_TCHW[None].to(self._device))
        self._model: Any = DistributedDataParallel(model)
        self._optimiser = build_optimiser(model, spec.classifier)

    def run(self) -> dict[str, str]:
        """Take all optimiser steps that are left; id -> error code of the videos that could not be used, those of all workers."""
        spec, own = self._spec, self._spec.classifier
        batches = global_batches(len(self._items), own.global_batch_size, own.epochs, spec.seed, spec.classes)
        first_step, bad_videos = load_newest(self._checkpoints, self._classifier.model, self._optimiser, spec.fingerprint)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(StageLog(Path(spec.folder), first_step)) if self._rank == 0 else None
            stack.enter_context(self._mirror.following_logs())
            feed = self._feed(stack, batches, first_step)
            for step in range(first_step + 1, len(batches) + 1):
                began = time.monotonic()
                ids, micro_batches = next(feed)
                waited_s = time.monotonic() - began
                rate = set_rate(self._optimiser, own, step - 1, len(batches))
                # What dropout draws depends on the step alone, so that a resumed training draws the same.
                torch.manual_seed(derive_seed(spec.seed, "dropout", step - 1, self._rank))
                loss, grad_norm, flags = self._step(step, ids, micro_batches)
                if log is not None:
                    elapsed_s, num_done = time.monotonic() - started, step - first_step
                    log.write(
                        {
                            **{"step": step, "num_steps": len(batches), "epoch": step * own.epochs / len(batches)},
                            **{"loss": loss, "grad_norm": grad_norm, "learning_rate": rate},
                            "samples_per_s": num_done * own.global_batch_size / elapsed_s,
                            "data_wait_share": waited_s / (time.monotonic() - began),
                            "elapsed_s": elapsed_s,
                            "eta_s": elapsed_s / num_done * (len(batches) - step),
                        }
                    )
                end = self._flags.agreed(step, flags)
                if end.saves or end.stop_reason is not None or step == len(batches):
                    bad_videos |= _of_all_ranks(self._bad_videos)
                    self._save(step, bad_videos)
                if end.stop_reason is not None and step < len(batches):
                    raise TrainingStopped(
                        f"{spec.name}: stopped after step {step} of {len(batches)} ({end.stop_reason}); saved "
                        f"{spec.home}/checkpoints/{checkpoint_path(Path(), step)}, the same command goes on there"
                    )
        return bad_videos

    def _step(self, step: int, ids: Sequence[str], micro_batches: Sequence[_MicroBatch]) -> tuple[float, float, tuple[float, ...]]:
        """Loss and gradient norm of the step, the same on all workers, and what all of them tell (`StepFlags`)."""
        own = self._spec.classifier
        total = torch.stack([batch.weights_B.sum() for batch in micro_batches]).double().sum().to(self._device)
        dist.all_reduce(total)
        scale = self._num_workers / max(float(total), 1e-12)  # gradients are averaged over workers
        losses = torch.zeros((), dtype=torch.float64, device=self._device)
        for number, batch in enumerate(micro_batches, 1):
            waits = contextlib.nullcontext() if number == len(micro_batches) else self._model.no_sync()
            autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=own.precision == "bf16")
            real = batch.without_fillers()
            blend = draw_blend(own.mixup, own.cutmix, derive_seed(self._spec.seed, "blend", step, self._rank, number))
            with waits:
                with autocast:
                    pixels_BTCHW = blend.pixels(real.pixels_BTCHW).to(self._device)
                    logits_BL = classify(self._model, self._classifier.model.main_input_name, pixels_BTCHW)
                loss = torch.zeros((), device=self._device)
                for share, targets_B, weights_B in blend.targets(real.targets_B, real.weights_B, pixels_BTCHW.shape[-1]):
                    losses_B = cross_entropy(logits_BL, targets_B.to(self._device), reduction="none", label_smoothing=own.label_smoothing)
                    loss = loss + share * (losses_B * weights_B.to(self._device)).sum()
                (loss * scale).backward()
            losses += loss.detach()
        # One exchange: the loss, and from which ranks it is no number, and the flags.
        here = torch.zeros(self._num_workers + 1, dtype=torch.float64, device=self._device)
        here[0], here[1 + self._rank] = torch.nan_to_num(losses), float(not torch.isfinite(losses))
        dist.all_reduce(here)
        if bad_ranks := [rank for rank, is_bad in enumerate(here[1:].tolist()) if is_bad]:
            stop_all_ranks("the loss", step, bad_ranks, ids)
        flags = torch.tensor(self._flags.here(write_failed=False), dtype=torch.float64, device=self._device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        most = math.inf if own.max_grad_norm is None else own.max_grad_norm
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self._classifier.model.parameters(), most))
        if not math.isfinite(grad_norm):
            stop_all_ranks("the gradient", step, range(self._num_workers), ids)
        self._optimiser.step()
        self._optimiser.zero_grad()
        return float(here[0]) / max(float(total), 1e-12), grad_norm, tuple(flags.tolist())

    def _feed(
        self, stack: contextlib.ExitStack, batches: Sequence[list[int | None]], first_step: int
    ) -> Iterator[tuple[list[str], list[_MicroBatch]]]:
        """This worker's ids and micro-batches of each step from `first_step` (0-based) on, decoded ahead of it."""
        spec, training, encoder = self._spec, self._spec.training, self._classifier.encoder
        num_threads = max(1, int(training.num_cpus))
        pool = stack.enter_context(DecodePool(num_threads, spec.video.timeout_s, spec.video.memory_limit_bytes))
        clips = ClipCache(training.clip_cache_folder, training.clip_cache_bytes)
        feed: ClipFeed[int, torch.Tensor] = ClipFeed(pool, encoder.video_spec(spec.video.backend), num_threads, clips)
        stack.enter_context(contextlib.closing(feed))
        shares = [worker_share(batch, self._rank, self._num_workers) for batch in batches]

        own = spec.classifier
        how = Cut(own.random_crop, own.random_flip, own.least_area, own.random_augment, own.random_erasing)

        def cut(clip: Clip, seed: int) -> torch.Tensor:
            return encoder.encode_cut(clip, seed, how)

        wanted = (
            None if index is None else (self._items[index].example, derive_seed(spec.seed, "cut", step, self._items[index].example.id))
            for step, share in enumerate(shares)
            for index in share
            if step >= first_step
        )
        encoded = feed.stream(wanted, cut)
        for share in shares[first_step:]:
            made = [self._sample(index, next(encoded)) for index in share]
            size = len(made) // self._num_accumulated
            groups = [made[start : start + size] for start in range(0, len(made), size)]
            ids = [self._items[index].example.id for index in share if index is not None]
            yield ids, [_MicroBatch(*(torch.stack(parts) for parts in zip(*group, strict=True))) for group in groups]

    def _sample(self, index: int | None, encoded: torch.Tensor | VideoError | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels, target and weight."""
        if index is None or not isinstance(encoded, torch.Tensor):
            if index is not None and isinstance(encoded, VideoError):
                self._bad_videos[self._items[index].example.id] = encoded.code
            return self._blank_TCHW, torch.tensor(0), torch.tensor(0.0)
        item = self._items[index]
        return encoded, torch.tensor(self._spec.task.labels.index(item.answer)), torch.tensor(item.weight)

    def _save(self, step: int, bad_videos: dict[str, str]) -> None:
        """On the first worker; all of them raise `CheckpointError` if it cannot."""
        problem: list[str | None] = [None]
        if self._rank == 0:
            kept = self._spec.training.keep_checkpoints
            try:
                model = self._classifier.model
                saved = save_checkpoint(self._checkpoints, model, self._optimiser, self._spec.fingerprint, step, bad_videos, kept)
                self._mirror.add_checkpoint(saved, complete_checkpoints(self._checkpoints))
            except (CheckpointError, ArtifactError) as error:
                problem = [str(error)]
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise CheckpointError(problem[0])


def device_for(num_gpus: float) -> torch.device:
    """This worker's device, which whoever started it has set."""
    return torch.device("cuda", torch.cuda.current_device()) if num_gpus > 0 else torch.device("cpu")


def _of_all_ranks(bad_videos: dict[str, str]) -> dict[str, str]:
    gathered: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, bad_videos)
    return {id_: code for part in gathered for id_, code in part.items()}
