"""Cosine with warm-up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.training.schedule import cosine_with_warmup


def test_three_percent_of_a_hundred_steps_are_three_steps_of_warm_up() -> None:
    factors = [cosine_with_warmup(step, 100, 0.03) for step in range(100)]
    assert factors[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors[3 + 97 // 2] == pytest.approx(0.5 * (1 + math.cos(math.pi * 48 / 97)))
    assert 0 < factors[-1] < 1e-3


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_no_step_is_wasted_and_none_passes_the_peak(num_steps: int, warmup_ratio: float) -> None:
    factors = [cosine_with_warmup(step, num_steps, warmup_ratio) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors == sorted(factors[: peak + 1]) + sorted(factors[peak + 1 :], reverse=True)
