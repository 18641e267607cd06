"""The order in which items are seen. A function of (seed, number of items, batch size) alone, never of workers or accumulation."""

from __future__ import annotations

import numpy as np

from rbft.seeds import derive_seed


def global_batches(num_items: int, global_batch_size: int, epochs: int, seed: int) -> list[list[int | None]]:
    """The item indices of every optimiser step. Each epoch is a permutation of its own; its last batch is filled up with None."""
    batches: list[list[int | None]] = []
    for epoch in range(epochs):
        order: list[int | None] = [*np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(num_items).tolist()]
        order += [None] * (-num_items % global_batch_size)
        batches += [order[start : start + global_batch_size] for start in range(0, len(order), global_batch_size)]
    return batches


def worker_share(batch: list[int | None], rank: int, num_workers: int) -> list[int | None]:
    """The part of a global batch that one worker takes; interleaved, so that the fill of a last batch is spread over workers."""
    return batch[rank::num_workers]
