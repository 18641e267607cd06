"""Position embeddings of video transformers: sines and cosines to start from, learned ones brought to other numbers of frames and sizes."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate


def sincos_1d(size: int, num_positions: int) -> torch.Tensor:
    """[positions, size]: sines, then cosines, of rates from 1 down to 1/10000 (Vaswani et al. 2017)."""
    rates = 10000.0 ** -(torch.arange(size // 2, dtype=torch.float64) / (size / 2))
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_2d(size: int, grid: int) -> torch.Tensor:
    """[grid², size], row by row: half of the channels for the column, half for the row."""
    of_one = sincos_1d(size // 2, grid)
    columns, rows = of_one.repeat(grid, 1), of_one.repeat_interleave(grid, dim=0)
    return torch.cat([columns, rows], dim=1)


def sincos_3d(size: int, num_tubelets: int, grid: int) -> torch.Tensor:
    """[tubelets x grid², size]: a quarter of the channels for time, the rest for the place. Of one tubelet or one place all are for the
    other."""
    if num_tubelets == 1:
        return sincos_2d(size, grid)
    if grid == 1:
        return sincos_1d(size, num_tubelets)
    times = sincos_1d(size // 4, num_tubelets).repeat_interleave(grid**2, dim=0)
    places = sincos_2d(size // 4 * 3, grid).repeat(num_tubelets, 1)
    return torch.cat([times, places], dim=1)


def resize_places(places_NC: torch.Tensor, grid: int) -> torch.Tensor:
    """[..., grid² , C] of embeddings [..., N, C] of a square of places, by bicubic interpolation."""
    old = round(places_NC.shape[-2] ** 0.5)
    if old == grid:
        return places_NC
    *front, _, size = places_NC.shape
    square = places_NC.reshape(-1, old, old, size).permute(0, 3, 1, 2)
    resized = interpolate(square.float(), size=(grid, grid), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(*front, grid * grid, size).to(places_NC.dtype)


def resize_times(times_TC: torch.Tensor, num_tubelets: int) -> torch.Tensor:
    """[tubelets, ...] of embeddings [T, ...], by linear interpolation along time."""
    if len(times_TC) == num_tubelets:
        return times_TC
    flat = times_TC.flatten(1).T[None]
    resized = interpolate(flat.float(), size=num_tubelets, mode="linear", align_corners=False)
    return resized[0].T.reshape(num_tubelets, *times_TC.shape[1:]).to(times_TC.dtype)
