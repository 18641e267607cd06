"""Training items (what is asked about a video and what the answer is) and their way to tensors.

Stage 1 asks the prompt that generated the rationale and supervises the rationale; stage 2 asks the question and supervises the label
(paper 3; readings, 7 and 9). Prompt and video tokens are never supervised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import tee
from typing import TYPE_CHECKING

import numpy as np

from rbft.data.clip_feed import ClipFeed
from rbft.errors import DataError, VideoError
from rbft.records import Clip, Example
from rbft.seeds import derive_seed
from rbft.systems import TargetFormat
from rbft.task import Message, Task

if TYPE_CHECKING:
    from rbft.models.chat import ChatAdapter, EncodedSample
    from rbft.video.clip_cache import ClipCache
    from rbft.video.pool import DecodePool


@dataclass(frozen=True)
class TrainingItem:
    """One supervised conversation."""

    example: Example
    messages: Sequence[Message]
    answer: str
    weight: float = 1.0
    """Of each of the answer's tokens in the loss, whose normaliser is the sum of the weights."""


def rationale_items(
    task: Task, examples: Iterable[Example], rationales: Mapping[str, str], target: TargetFormat = "rationale"
) -> list[TrainingItem]:
    """Stage-1 items of the examples that have a rationale, in the examples' order. `rationales` maps id to text.

    The answer is the text alone, or has the label on a line before or after it (paper, Table 3). Raises `DataError` if such a label is
    missing.
    """
    return [
        TrainingItem(example, task.rationale_messages(example.context), _answer(example, rationales[example.id], target))
        for example in examples
        if example.id in rationales
    ]


def _answer(example: Example, rationale: str, target: TargetFormat) -> str:
    if target == "rationale":
        return rationale
    if example.label is None:
        raise DataError(f"video {example.id} has no label, which {target} wants beside its rationale; label it, or choose another system")
    label = f"Classification: {example.label}"
    return f"{label}\n{rationale}" if target == "label-first" else f"{rationale}\n{label}"


def own_subset(examples: Sequence[Example], num_own: int, seed: int) -> set[str]:
    """The ids of `num_own` of `examples`, drawn by `seed`: those that stage 1 takes the model's own rationale for.

    A smaller subset is part of every larger one; which come next depends on the seed and the id alone.
    """
    order = sorted((example.id for example in examples), key=lambda id_: derive_seed(seed, "own rationale", id_))
    return set(order[:num_own])


def shuffled_rationales(rationales: Mapping[str, str], seed: int) -> dict[str, str]:
    """Each video with the rationale of another one: a cycle through all of them in an order drawn by `seed`. The control of stage 1."""
    ids = sorted(rationales, key=lambda id_: derive_seed(seed, "shuffled rationale", id_))
    return {id_: rationales[other] for id_, other in zip(ids, [*ids[1:], *ids[:1]], strict=True)}


def human_rationales(examples: Iterable[Example]) -> dict[str, str]:
    """Id -> the manifest's human text; raises `DataError` for a video that has none."""
    examples = list(examples)
    without = [example.id for example in examples if not example.human_text]
    if without:
        raise DataError(
            f"{len(without)} training videos have no human_text in the manifest, e.g. {without[0]}; add it, or leave rb-ft-human and "
            "rb-ft-mix out"
        )
    return {example.id: str(example.human_text) for example in examples}


def label_subset(examples: Sequence[Example], num_labels: int, seed: int) -> list[Example]:
    """`num_labels` of the labelled `examples`, drawn by `seed`, in their order; a smaller subset is part of every larger one.

    Raises `DataError` if there are not so many.
    """
    labelled = [example for example in examples if example.label is not None]
    if num_labels > len(labelled):
        raise DataError(
            f"{num_labels} labels are asked for and {len(labelled)} training videos have one; ask for fewer in evaluation.systems"
        )
    chosen = {e.id for e in sorted(labelled, key=lambda example: derive_seed(seed, "label subset", example.id))[:num_labels]}
    return [example for example in labelled if example.id in chosen]


def classify_items(task: Task, examples: Iterable[Example]) -> list[TrainingItem]:
    """Stage-2 items of the labelled examples, in their order; raises `DataError` for a label the task does not have."""
    items = []
    for example in examples:
        if example.label is None:
            continue
        if example.label not in task.labels:
            raise DataError(f"video {example.id}: label {example.label!r} is not one of {list(task.labels)}; mend the manifest or the task")
        items.append(TrainingItem(example, task.question_messages(example.context), example.label))
    return items


def class_weights(items: Sequence[TrainingItem]) -> list[TrainingItem]:
    """The label `items`, each with a weight inversely proportional to how many have its label; 1 in the mean over the items."""
    counts = Counter(item.answer for item in items)
    return [replace(item, weight=len(items) / (len(counts) * counts[item.answer])) for item in items]


def replay_items(rationales: Sequence[TrainingItem], num_labels: int, share: float, seed: int) -> list[TrainingItem]:
    """As many of stage 1's `rationales` as make up `share` of an epoch with `num_labels` label samples, in an order drawn by `seed`; all of
    them in turn where more are asked for than there are."""
    wanted = round(num_labels * share / (1 - share))
    order = sorted(rationales, key=lambda item: derive_seed(seed, "replay", item.example.id))
    return [order[number % len(order)] for number in range(wanted)]


def weigh_replay(items: Sequence[TrainingItem], num_replay: int, adapter: ChatAdapter) -> list[TrainingItem]:
    """The items, of which the last `num_replay` are rationales: those with the weight at which each adds as much to the loss as a label.

    In the token mean a rationale of 300 tokens would count as much as 150 labels, and stage 2 would be another stage 1.
    """
    if not num_replay:
        return list(items)
    labels, rationales = items[:-num_replay], items[-num_replay:]
    num_tokens = {item.answer: len(adapter.answer_ids(item.answer)) for item in items}
    of_label = sum(item.weight * num_tokens[item.answer] for item in labels) / len(labels)
    return [*labels, *(replace(item, weight=of_label / num_tokens[item.answer]) for item in rationales)]


def draw_items(items: Sequence[TrainingItem], count: int, purpose: str, seed: int) -> tuple[TrainingItem, ...]:
    """`count` of `items`, or all of them, the first in an order drawn by `seed` for this `purpose`."""
    return tuple(sorted(items, key=lambda item: derive_seed(seed, purpose, item.example.id))[:count])


class SampleEncoder:
    """Decodes and encodes items ahead of the training step, in order."""

    def __init__(self, adapter: ChatAdapter, pool: DecodePool, num_threads: int, clips: ClipCache | None = None) -> None:
        """`pool`, `num_threads` and `clips` as in `ClipFeed`."""
        self._adapter = adapter
        self._feed: ClipFeed[TrainingItem, EncodedSample] = ClipFeed(pool, adapter.spec, num_threads, clips)
        self.errors: dict[str, VideoError] = {}
        """Id -> why the video could not be used; such a sample is replaced by one without supervised tokens."""

    def stream(self, items: Iterable[TrainingItem | None]) -> Iterator[EncodedSample]:
        """One sample an item, in order. None, and a video that cannot be decoded, become a sample without supervised tokens."""
        ahead, here = tee(items)
        wanted = (None if item is None else (item.example, item) for item in ahead)
        with closing(self._feed.stream(wanted, self._encode)) as encoded:
            for made, item in zip(encoded, here, strict=False):
                if isinstance(made, VideoError):
                    assert item is not None
                    self.errors[item.example.id] = made
                yield self._empty_sample() if made is None or isinstance(made, VideoError) else made

    def close(self) -> None:
        self._feed.close()

    def _encode(self, clip: Clip, item: TrainingItem) -> EncodedSample:
        return self._adapter.encode(clip, item.messages, item.answer, item.weight)

    def _empty_sample(self) -> EncodedSample:
        """The smallest clip and prompt there is: keeps all ranks in step, adds nothing to the loss."""
        spec = self._adapter.spec
        side = spec.patch_multiple
        frames = np.zeros((2, side, side, 3), dtype=np.uint8)
        clip = Clip(frames, (0.0, 1.0 / spec.fps), spec.fps, 2.0 / spec.fps, spec.fps, "none")
        return self._adapter.encode(clip, [{"role": "user", "content": [{"type": "video"}]}])
