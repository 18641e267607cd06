"""Mixup and CutMix of the clips of a micro-batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rbft.baselines.clip_blending import draw_blend

TARGETS, WEIGHTS = torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 4.0])


def clips(num: int = 3, size: int = 20) -> torch.Tensor:
    """Clip i is all of i."""
    return torch.arange(num, dtype=torch.float32)[:, None, None, None, None].expand(-1, 2, 3, size, size).clone()


def test_nothing_is_blended_unless_asked_for() -> None:
    blend = draw_blend(0, 0, 1)
    assert torch.equal(blend.pixels(clips()), clips())
    ((share, targets, weights),) = blend.targets(TARGETS, WEIGHTS, 20)
    assert share == 1 and torch.equal(targets, TARGETS) and torch.equal(weights, WEIGHTS)


@given(st.integers(0, 500), st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)]))
def test_labels_are_shared_out_as_pixels_are(seed: int, alphas: tuple[float, float]) -> None:
    """The mean of a blend's pixels is the mean of its labels, as clip i is all of i."""
    blend = draw_blend(*alphas, seed)
    shares = list(blend.targets(TARGETS, WEIGHTS, 20))
    assert sum(share for share, _, _ in shares) == pytest.approx(1)
    labels = sum(share * targets.float() for share, targets, _ in shares)
    assert torch.allclose(blend.pixels(clips()).mean((1, 2, 3, 4)), torch.as_tensor(labels), atol=1e-5)
    assert sum(share * weights.sum() for share, _, weights in shares) == pytest.approx(7)


def test_both_kinds_come_up_and_a_seed_always_gives_the_same() -> None:
    blends = [draw_blend(0.8, 1.0, seed) for seed in range(40)]
    assert 5 < sum(blend.centre is None for blend in blends) < 35
    assert blends == [draw_blend(0.8, 1.0, seed) for seed in range(40)]


def test_a_clip_alone_stays_as_it_is() -> None:
    blend = draw_blend(0.8, 0, 3)
    assert torch.equal(blend.pixels(clips(1)), clips(1)) and len(list(blend.targets(TARGETS[:1], WEIGHTS[:1], 20))) == 1
