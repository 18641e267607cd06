"""RandAugment and erasing of whole clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rbft.baselines.clip_augmentation import _operations, augment, erase


def frames(height: int = 24, width: int = 32) -> torch.Tensor:
    """One picture three times over."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(np.repeat(picture, 3, axis=0))


@pytest.mark.parametrize("name", sorted(_operations()))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_operation_does_something_to_all_frames_alike(name: str, sign: float) -> None:
    if name in ("autocontrast", "equalize"):
        given = frames() // 4 + 40  # else it is stretched already
    else:
        given = frames()
    done = _operations()[name](given, 0.7, sign)
    assert done.shape == given.shape and done.dtype == torch.uint8
    assert torch.equal(done[0], done[1]) and not torch.equal(done, given)


def test_shifts_are_by_a_share_of_the_frame() -> None:
    moved = _operations()["translate_x"](frames(), 0.5, 1.0)
    shift = round(0.5 * 0.45 * 32)
    assert torch.equal(moved[..., shift:], frames()[..., :-shift]) and (moved[..., :shift] == 128).all()


def test_augmenting_is_a_function_of_the_draw_and_sometimes_does_nothing() -> None:
    done = [augment(frames(), 1, np.random.default_rng(seed)) for seed in range(30)]
    assert all(torch.equal(first, augment(frames(), 1, np.random.default_rng(seed))) for seed, first in enumerate(done))
    assert 3 < sum(torch.equal(each, frames()) for each in done) < 27


def test_erasing_leaves_the_rest_as_it_was() -> None:
    pixels = torch.zeros(2, 3, 40, 40)
    shares = []
    for seed in range(40):
        erased = erase(pixels, 0.5, np.random.default_rng(seed))
        is_noise = (erased != 0).any(1)
        assert torch.equal(is_noise[0], is_noise[1])
        shares.append(float(is_noise[0].float().mean()))
    assert 8 < sum(share > 0 for share in shares) < 32 and max(shares) < 0.36
    assert not pixels.any(), "the given pixels must not change"
