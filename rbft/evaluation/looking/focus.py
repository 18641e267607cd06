"""How much of a model's attention on a video falls on its objects, against how much of the frames they fill.

Chance is 1: attention spread evenly has as large a share inside the boxes as the boxes have of the area. Intervals are those of the
bootstrap over videos; two models are compared on the same draws of the same videos.

Objects are rarely at a frame's edge, and attention may know no more than that. So read the number beside that of `boxes.boxes_of_others`:
what lies above it is attention on this video's objects.

Shape legend: T frames of H x W pixels; the grid of an attention map is a divisor of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from rbft.errors import DataError
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.boxes import Box, boxes_in_frames, covered
from rbft.evaluation.metrics import NUM_RESAMPLES, Interval, interval95
from rbft.records import Clip


@dataclass(frozen=True)
class Focus:
    """One video: shares in 0..1."""

    inside: float
    """Of the attention on the video, what falls inside the boxes."""
    area: float
    """Of the frames, what the boxes fill."""


class Enrichment(BaseModel):
    """`inside` over `area`, each a mean over the videos, with 95 % intervals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_videos: int
    inside: float
    inside_ci95: Interval
    area: float
    enrichment: float
    """1 is chance."""
    enrichment_ci95: Interval


class EnrichmentDifference(BaseModel):
    """The enrichment of one model minus that of another on the same videos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_videos: int
    value: float
    ci95: Interval


def focus(attention: AttentionMap, covered_THW: NDArray[np.bool_]) -> Focus | None:
    """The focus of `attention` on the pixels covered (`boxes.covered`) of the same clip.

    None where there is nothing to measure: no pixel or every pixel is covered, or nothing of the attention is on the video.
    A token that is covered in part counts in that part. A clip of an odd number of frames is made even as the model does it.
    """
    grid = attention.grid_THW
    frames_per_token = -(-len(covered_THW) // len(grid))
    missing = len(grid) * frames_per_token - len(covered_THW)
    whole_THW = np.concatenate([covered_THW, np.repeat(covered_THW[-1:], missing, axis=0)])
    height, width = (size // cells for size, cells in zip(whole_THW.shape[1:], grid.shape[1:], strict=True))
    tokens = whole_THW.reshape(grid.shape[0], frames_per_token, grid.shape[1], height, grid.shape[2], width).mean(axis=(1, 3, 5))
    area = float(tokens.mean())
    if area in (0.0, 1.0) or attention.video_share == 0:
        return None
    weights = grid.astype(np.float64)
    return Focus(float((weights * tokens).sum() / weights.sum()), area)


def focuses(
    attentions: Mapping[str, AttentionMap], clips: Mapping[str, Clip], boxes: Mapping[str, Sequence[Box]], num_objects: int | None = None
) -> dict[str, Focus]:
    """Video id -> focus of its attention on its boxes, or on those of its `num_objects` most salient objects.

    Videos with nothing to measure are left out.
    """
    found = {}
    for id_, attention in attentions.items():
        height, width = clips[id_].frames_THWC.shape[1:3]
        frames = boxes_in_frames(boxes.get(id_, ()), clips[id_], num_objects)
        found[id_] = focus(attention, covered(frames, height, width))
    return {id_: each for id_, each in found.items() if each is not None}


def enrichment(focuses: Mapping[str, Focus], seed: int = 0) -> Enrichment:
    """Over the videos of `focuses` (id -> focus). Raises `DataError` if there are none."""
    inside, area = _shares(focuses, list(focuses))
    counts = _draws(len(focuses), seed)
    drawn = counts @ inside
    return Enrichment(
        num_videos=len(focuses),
        inside=float(inside.mean()),
        inside_ci95=interval95(drawn / len(focuses)),
        area=float(area.mean()),
        enrichment=float(inside.mean() / area.mean()),
        enrichment_ci95=interval95(drawn / (counts @ area)),
    )


def compare_enrichment(system: Mapping[str, Focus], baseline: Mapping[str, Focus], seed: int = 0) -> EnrichmentDifference:
    """`system` minus `baseline`, paired by video. Raises `DataError` if they are not of the same videos."""
    if system.keys() != baseline.keys():
        raise DataError(f"attention was read of different videos: {sorted(system.keys() ^ baseline.keys())[0]} is in one only")
    ids = sorted(system)
    counts = np.concatenate([np.ones((1, len(ids)), dtype=np.int64), _draws(len(ids), seed)])  # the first "draw" is the data itself
    ours, theirs = ((counts @ inside) / (counts @ area) for inside, area in (_shares(each, ids) for each in (system, baseline)))
    return EnrichmentDifference(num_videos=len(ids), value=float(ours[0] - theirs[0]), ci95=interval95((ours - theirs)[1:]))


def _shares(focuses: Mapping[str, Focus], ids: list[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not ids:
        raise DataError("no video has boxes and attention to compare; give boxes of the videos that are evaluated")
    return np.array([focuses[id_].inside for id_ in ids]), np.array([focuses[id_].area for id_ in ids])


def _draws(num_videos: int, seed: int) -> NDArray[np.int64]:
    """How often each video is drawn, [resamples, videos]."""
    return np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=NUM_RESAMPLES)
