"""Cosine decay with linear warm-up (paper 4.1: 3 % warm-up)."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, num_steps: int, warmup_ratio: float) -> float:
    """The factor in (0, 1] on the peak rate at optimiser step `step` (0-based).

    Warm-up takes ceil(warmup_ratio * num_steps) steps, as in transformers' trainer; unlike there the first step's rate is not 0,
    so that no step is wasted: rates are taken at the end of each step's interval.
    """
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))
