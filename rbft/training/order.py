"""The order in which items are seen. A function of (seed, items' classes, batch size) alone, never of workers or accumulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rbft.seeds import derive_seed


def global_batches(
    num_items: int, global_batch_size: int, epochs: int, seed: int, classes: Sequence[str | None] = ()
) -> list[list[int | None]]:
    """The item indices of every optimiser step. Each epoch is a permutation of its own; its last batch is filled up with None.

    With `classes`, one an item, an epoch is of `balanced_epoch` instead of every item once.
    """
    batches: list[list[int | None]] = []
    for epoch in range(epochs):
        chosen = balanced_epoch(classes, seed, epoch) if classes else list(range(num_items))
        order: list[int | None] = [
            chosen[place] for place in np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(len(chosen)).tolist()
        ]
        order += [None] * (-len(order) % global_batch_size)
        batches += [order[start : start + global_batch_size] for start in range(0, len(order), global_batch_size)]
    return batches


def balanced_epoch(classes: Sequence[str | None], seed: int, epoch: int) -> list[int]:
    """Item indices in which every class stands as often as the most frequent one does: all its items equally often, and as many of them
    as are still needed once more, drawn anew for each epoch. Items without a class stand once."""
    by_class: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        if name is not None:
            by_class.setdefault(name, []).append(index)
    wanted = max(map(len, by_class.values()), default=0)
    chosen = [index for index, name in enumerate(classes) if name is None]
    for name, indices in sorted(by_class.items()):
        times, rest = divmod(wanted, len(indices))
        drawn = np.random.default_rng(derive_seed(seed, "balance", epoch, name)).permutation(len(indices))[:rest]
        chosen += indices * times + [indices[place] for place in drawn.tolist()]
    return chosen


def worker_share(batch: list[int | None], rank: int, num_workers: int) -> list[int | None]:
    """The part of a global batch that one worker takes; interleaved, so that the fill of a last batch is spread over workers."""
    return batch[rank::num_workers]
