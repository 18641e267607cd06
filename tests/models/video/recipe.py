"""Weights and clips that both sides of a comparison draw, so that no file has to hold them: functions of seed and name alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

NUM_KEPT = 256
"""Elements of each gradient that a fixture holds, the first ones; beside them its norm."""


def draw(seed: int, name: str, shape: Sequence[int]) -> torch.Tensor:
    """float32, standard normal, of NumPy's PCG64 seeded with `seed` and the CRC of `name`."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return torch.from_numpy(generator.standard_normal(tuple(shape)).astype(np.float32))


def draw_weights(seed: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Name -> weight, of official names: norms near 1, variances positive, counts 0, matrices of about the scale that keeps signals."""
    return {name: _weight(name, draw(seed, name, shape)) for name, shape in shapes.items()}


def _weight(name: str, normal: torch.Tensor) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return 0.5 + normal.abs()
    if normal.ndim == 1 and name.endswith(("weight", "gamma")):
        return 1 + 0.2 * normal
    if normal.ndim > 1 and name.endswith("weight"):
        return normal / normal[0].numel() ** 0.5
    return 0.3 * normal


def draw_clips(seed: int, num_clips: int, num_frames: int, size: int) -> torch.Tensor:
    """[clips, frames, 3, size, size]: noise, and a brightness a frame, without which all means would be alike."""
    return draw(seed, "clips", (num_clips, num_frames, 3, size, size)) + draw(seed, "brightness", (num_clips, num_frames, 1, 1, 1))


def draw_targets(num_clips: int, num_labels: int) -> torch.Tensor:
    return torch.arange(num_clips) % num_labels


def kept(gradient: torch.Tensor) -> torch.Tensor:
    """The norm, then the first elements."""
    return torch.cat([gradient.norm()[None], gradient.flatten()[:NUM_KEPT]])
