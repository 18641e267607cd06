"""Clips of a micro-batch blended with one another: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Each clip is blended with the one at the same place from the other end, all by the same share, which a Beta distribution draws once a
micro-batch. The loss is that of both labels by their shares; weights of clips go with their labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Blend:
    """How the clips of one micro-batch are blended; a function of the seed."""

    share: float = 1.0
    """Of each clip in its blend."""
    centre: tuple[float, float] | None = None
    """CutMix: where in the frame (height, width; 0 to 1) the middle of the other's rectangle is; None: mixup."""

    def pixels(self, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        if self.share == 1 or len(pixels_BTCHW) < 2:
            return pixels_BTCHW
        if self.centre is None:
            return self.share * pixels_BTCHW + (1 - self.share) * pixels_BTCHW.flip(0)
        top, bottom, left, right = self._rectangle(*pixels_BTCHW.shape[-2:])
        blended = pixels_BTCHW.clone()
        blended[..., top:bottom, left:right] = pixels_BTCHW.flip(0)[..., top:bottom, left:right]
        return blended

    def targets(self, targets_B: torch.Tensor, weights_B: torch.Tensor, size: int) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
        """Share, targets and weights of each part of the loss. CutMix's share is that of whole pixels, of frames of `size`."""
        if self.share == 1 or len(targets_B) < 2:
            yield 1.0, targets_B, weights_B
            return
        share = self.share
        if self.centre is not None:
            top, bottom, left, right = self._rectangle(size, size)
            share = 1 - (bottom - top) * (right - left) / size**2
        yield share, targets_B, weights_B
        yield 1 - share, targets_B.flip(0), weights_B.flip(0)

    def _rectangle(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, bottom, left, right: of 1 - `share` of the area, as far as it lies in the frame."""
        assert self.centre is not None
        side = (1 - self.share) ** 0.5
        ends = []
        for middle, length in zip(self.centre, (height, width), strict=True):
            ends += [round(min(max(middle * length + sign * side * length / 2, 0), length)) for sign in (-1, 1)]
        return ends[0], ends[1], ends[2], ends[3]


def draw_blend(mixup: float, cutmix: float, seed: int) -> Blend:
    """By the alphas of their Beta distributions, 0 for never; with both, each half of the time."""
    if mixup == 0 and cutmix == 0:
        return Blend()
    draw = np.random.default_rng(seed)
    is_cutmix = cutmix > 0 and (mixup == 0 or draw.random() < 0.5)
    alpha = cutmix if is_cutmix else mixup
    share = float(draw.beta(alpha, alpha))
    return Blend(share, (float(draw.random()), float(draw.random())) if is_cutmix else None)
