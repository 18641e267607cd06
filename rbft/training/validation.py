"""Validation while a stage trains: macro-F1 by label likelihood on held-out videos, the best so far, and when to stop.

The training engine itself scores: a forward a video and label, through the module that is trained, so that whatever DeepSpeed does to it
(ZeRO-3's partitions, bfloat16) holds here too. Every rank takes its share of the videos and makes as many forwards as the others: under
ZeRO-3 they gather the weights together. Training is the same with and without it: nothing is drawn, no gradient is made.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from rbft import storage
from rbft.config import ValidationConfig
from rbft.data.samples import SampleEncoder, TrainingItem
from rbft.evaluation.metrics import score_confusions
from rbft.models.batches import pack, pad, to_device
from rbft.models.chat import IGNORE_INDEX, ChatAdapter, EncodedSample
from rbft.training.stage import PROBE_FILE, VALIDATION_FILE, StageSpec
from rbft.video.clip_cache import ClipCache
from rbft.video.pool import DecodePool


@dataclass(frozen=True)
class Validation:
    """The scores of one validation."""

    step: int
    """Optimiser steps taken before it."""
    scores: dict[str, float]
    """accuracy, balanced_accuracy and macro_f1 (shares), loss (nats a label token), coverage (share of the videos that could be used)."""

    def rank(self, metric: str) -> tuple[float, float]:
        """Larger is better; of two that are as good by `metric`, which in a small split is often, the one of lower loss."""
        loss = -self.scores["loss"]
        return (loss, loss) if metric == "loss" else (self.scores[metric], loss)


class Validations:
    """The validations of a stage so far, the same on every rank; kept in its folder, so that a resumed stage knows them."""

    def __init__(self, spec: StageSpec, last_step: int) -> None:
        """Those up to `last_step`, from which the stage goes on; every rank calls this."""
        self._config, self._path = spec.training.validation, Path(spec.folder) / VALIDATION_FILE
        known: list[Any] = [[]]
        if dist.get_rank() == 0 and self._path.exists():
            known = [json.loads(self._path.read_text())]
        dist.broadcast_object_list(known)
        self._found = [Validation(each["step"], each["scores"]) for each in known[0] if each["step"] <= last_step]

    @property
    def best(self) -> Validation | None:
        """The first of the best ones; None before the first validation."""
        return max(self._found, key=lambda found: found.rank(self._config.metric), default=None)

    @property
    def is_over(self) -> bool:
        """Whether as many as `patience` in a row were no better than the best before them."""
        if self._config.patience is None or self.best is None:
            return False
        return len(self._found) - 1 - self._found.index(self.best) >= self._config.patience

    def add(self, found: Validation) -> bool:
        """Whether `found` is the best so far. Every rank calls this; it is on disk when rank 0 comes back."""
        self._found.append(found)
        if dist.get_rank() == 0:
            content = [{"step": each.step, "scores": each.scores} for each in self._found]
            storage.write_bytes(str(self._path), (json.dumps(content, indent=1) + "\n").encode())
        return self.best is found


def best_scores(spec: StageSpec) -> dict[str, float] | None:
    """The scores of the validation that a finished stage's model is of; None where it was not validated."""
    if not spec.validation:
        return None
    content = json.loads((Path(spec.folder) / VALIDATION_FILE).read_text())
    found = [Validation(each["step"], each["scores"]) for each in content]
    return max(found, key=lambda each: each.rank(spec.training.validation.metric)).scores


def validation_steps(config: ValidationConfig, num_steps: int, epochs: int) -> frozenset[int]:
    """The optimiser steps (1-based) after which to validate: those that `config` asks for, and the last; empty where it is off."""
    if not config.is_on:
        return frozenset()
    every = config.every_steps or (config.every_epochs or 0.0) * num_steps / epochs
    times = math.ceil(num_steps / every)
    return frozenset({num_steps, *(min(num_steps, max(1, round(number * every))) for number in range(1, times + 1))})


def validate(engine: Any, adapter: ChatAdapter, spec: StageSpec, step: int) -> Validation:
    """Scores on `spec.validation`, the same on every rank; every rank calls this.

    A video that cannot be used counts as wrong, as in evaluation (readings, 13), and not in the loss.
    """
    labels = spec.task.labels
    answers = {label: adapter.answer_ids(label) for label in labels}
    logprobs: list[dict[str, float]] = []
    with _scoring(engine, adapter, spec, spec.validation) as samples:
        for sample in samples:
            scores = {label: -_summed_loss(engine, adapter, spec, _with_answer(sample, ids)) for label, ids in answers.items()}
            logprobs.append(scores if sample.num_supervised_tokens else {})
    confusion = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    loss, num_tokens = 0.0, 0
    for item, scores in zip(spec.validation, _in_order(logprobs, len(spec.validation)), strict=True):
        guess = labels.index(max(scores, key=scores.__getitem__)) if scores else len(labels)
        confusion[labels.index(item.answer), guess] += 1
        if scores:
            loss -= scores[item.answer]
            num_tokens += len(answers[item.answer])
    found = {name: float(value) for name, value in score_confusions(confusion).items()}
    coverage = 1 - float(confusion[:, -1].sum() / confusion.sum())
    return Validation(step, found | {"loss": loss / max(1, num_tokens), "coverage": coverage})


def mean_loss(engine: Any, adapter: ChatAdapter, spec: StageSpec, items: Sequence[TrainingItem]) -> float:
    """Token mean of the loss of `items`, those that can be used; the same on every rank, which all call this."""
    losses: list[tuple[float, int]] = []
    with _scoring(engine, adapter, spec, items) as samples:
        for sample in samples:
            loss = _summed_loss(engine, adapter, spec, replace(sample, weight=1.0))
            losses.append((loss, sample.num_supervised_tokens))
    found = _in_order(losses, len(items))
    return math.fsum(loss for loss, _ in found) / max(1, sum(num_tokens for _, num_tokens in found))


@contextlib.contextmanager
def _scoring(engine: Any, adapter: ChatAdapter, spec: StageSpec, items: Sequence[TrainingItem]) -> Iterator[Iterator[EncodedSample]]:
    """This rank's samples of `items`, as many on every rank, with the engine set to score; one without supervised tokens where a video
    cannot be used, and as filler."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    share: list[TrainingItem | None] = list(items[rank::num_ranks])
    share += [None] * (math.ceil(len(items) / num_ranks) - len(share))
    num_threads = max(1, int(spec.training.num_cpus))
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(DecodePool(num_threads, spec.video.timeout_s, spec.video.memory_limit_bytes))
        clips = ClipCache(spec.training.clip_cache_folder, spec.training.clip_cache_bytes)
        encoder = stack.enter_context(contextlib.closing(SampleEncoder(adapter, pool, num_threads, clips)))
        stack.enter_context(torch.no_grad())
        engine.eval()
        stack.callback(engine.train)
        yield encoder.stream(share)


def _with_answer(sample: EncodedSample, answer_ids: Sequence[int]) -> EncodedSample:
    """The same prompt with another answer: the clip is decoded and encoded once for all labels."""
    num_prompt = len(sample.labels_L) - sample.num_supervised_tokens
    answer_A = torch.tensor(answer_ids)
    return replace(
        sample,
        input_ids_L=torch.cat([sample.input_ids_L[:num_prompt], answer_A]),
        labels_L=torch.cat([torch.full((num_prompt,), IGNORE_INDEX), answer_A]),
        mm_token_type_ids_L=torch.cat([sample.mm_token_type_ids_L[:num_prompt], torch.zeros_like(answer_A)]),
    )


def _summed_loss(engine: Any, adapter: ChatAdapter, spec: StageSpec, sample: EncodedSample) -> float:
    """-log p of the sample's answer, by the way of training: frames as uint8, a packed row where rows are packed."""
    join = pack if spec.training.batching == "packed" else pad
    return float(engine(**to_device(join([sample], adapter), engine.device)))


def _in_order(mine: list[Any], count: int) -> list[Any]:
    """What all ranks found, in the order of the items that `_scoring` shared out, without the fillers."""
    by_rank: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, mine)
    return [by_rank[index % len(by_rank)][index // len(by_rank)] for index in range(count)]


def probe_rationales(engine: Any, adapter: ChatAdapter, spec: StageSpec, moment: Literal["before", "after"]) -> None:
    """Write the loss of `spec.probe` at this `moment`; nothing without one. Every rank calls this."""
    if not spec.probe:
        return
    loss = mean_loss(engine, adapter, spec, spec.probe)
    if dist.get_rank() == 0:
        path = Path(spec.folder) / PROBE_FILE
        known = json.loads(path.read_text()) if path.exists() else {}
        storage.write_bytes(str(path), (json.dumps(known | {"num_rationales": len(spec.probe), moment: loss}, indent=1) + "\n").encode())
