"""What must not pass unseen: a loss or gradient that is no number, on whichever rank, and a loss that jumps.

The first ends the stage on every rank with the same error; the second is only told.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NoReturn

import torch.distributed as dist

from rbft.errors import NotFiniteError

NUM_REMEMBERED = 50
"""Losses that a new one is held against."""
NUM_NEEDED = 10
"""Fewer say nothing about what is usual."""
DEVIATIONS = 6.0
"""Above the median, in robust standard deviations: 1.4826 x the median absolute deviation, which is a normal distribution's standard
deviation."""
LEAST_DEVIATION = 0.05
"""Share of the median: where the loss hardly moves, what is within 30 % of it is no spike."""


class SpikeWatch:
    """Knows a loss that jumps by those before it. Spikes count among them: a loss that stays high is a new usual."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses = deque(losses, maxlen=NUM_REMEMBERED)

    @classmethod
    def of_all_ranks(cls, losses: Sequence[float]) -> SpikeWatch:
        """One that knows the `losses` that rank 0 brings, those before the step from which a stage goes on; every rank calls this."""
        known = [list(losses)[-NUM_REMEMBERED:]]
        dist.broadcast_object_list(known)
        return cls(known[0])

    def is_spike(self, loss: float) -> bool:
        """Whether `loss` is above median + 6 robust standard deviations of the last 50; it is remembered."""
        is_spike = len(self._losses) >= NUM_NEEDED and loss > spike_limit(self._losses)
        self._losses.append(loss)
        return is_spike


def spike_limit(losses: Iterable[float]) -> float:
    """The largest loss that is no spike after these."""
    losses = list(losses)
    middle = median(losses)
    deviation = 1.4826 * median(abs(loss - middle) for loss in losses)
    return middle + DEVIATIONS * max(deviation, LEAST_DEVIATION * abs(middle))


def require_finite_gradient(engine: Any, step: int, ids: Sequence[str]) -> float:
    """The gradient's norm over all ranks, before clipping, of the step just taken; 0 where DeepSpeed has none.

    Every rank calls this with the `ids` of its own batch. Raises `NotFiniteError` on all of them if the norm is no number.
    """
    norm = engine.get_global_grad_norm()
    norm = 0.0 if norm is None else float(norm)
    # DeepSpeed 0.19 says infinite where it left the step out, and -1 where it took it (bfloat16).
    if not math.isfinite(norm) or norm < 0:
        stop_all_ranks("the gradient", step, range(dist.get_world_size()), ids)
    return norm


def stop_all_ranks(what: str, step: int, ranks: Sequence[int], ids: Sequence[str]) -> NoReturn:
    """Raise the same `NotFiniteError` on every rank: `what` is no number at optimiser step `step` (1-based).

    Every rank calls this, with the same `ranks`, those it happened on, and with the `ids` of its own batch.
    """
    by_rank = gather_ids(ids)
    where = "; ".join(f"rank {rank}: {', '.join(by_rank[rank]) or 'fillers only'}" for rank in ranks)
    raise NotFiniteError(
        f"{what} is NaN or infinite at step {step}, with these videos in the batch ({where}). Nothing of this step was saved, and going on "
        "from the last checkpoint meets it again: look at the videos and answers, leave those at fault out of the manifest, or lower the "
        "learning rate"
    )


def gather_ids(ids: Sequence[str]) -> list[list[str]]:
    """The `ids` that each rank brought, by rank; every rank calls this."""
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, list(ids))
    return gathered


def keep_gradient_norm(engine: Any) -> None:
    """Have an engine without ZeRO keep its gradient's norm as the others do; DeepSpeed 0.19 computes it there and throws it away."""
    if engine.zero_optimization_stage() > 0:
        return
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip_and_keep() -> None:
        engine._global_grad_norm = clip_grad_norm_(parameters=engine.module.parameters(), max_norm=engine.gradient_clipping())

    engine.clip_fp32_gradients = clip_and_keep
