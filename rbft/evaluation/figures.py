"""The report's figures as text that stands inside an HTML file: SVG drawn here, frames as JPEG data URIs.

The SVG carries classes, no colours: the page's style sheet colours it, in light and in dark.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from rbft.evaluation.curves import LossCurve
from rbft.evaluation.metrics import Interval
from rbft.records import Clip

_MAX_PLOT_POINTS = 400
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class IntervalRow:
    """A line of an interval plot: a value with its 95 % interval."""

    title: str
    value: float
    ci95: Interval


@dataclass(frozen=True)
class FrameImage:
    """One frame as the page shows it."""

    timestamp_s: float
    uri: str
    """A data URI."""
    width: int
    height: int


def frame_images(clip: Clip, *, max_frames: int = 8, max_height: int = 112) -> list[FrameImage]:
    """Up to `max_frames` frames of a clip, evenly spread from first to last, at most `max_height` pixels high, as JPEG data URIs."""
    from PIL import Image

    chosen = np.unique(np.linspace(0, clip.num_frames - 1, min(max_frames, clip.num_frames)).round().astype(int))
    images = []
    for index in chosen:
        image = Image.fromarray(np.asarray(clip.frames_THWC[index], dtype=np.uint8))
        image.thumbnail((4 * max_height, max_height))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        images.append(FrameImage(clip.timestamps_s[index], uri, image.width, image.height))
    return images


def loss_plot(curve: LossCurve, *, width: int = 330, height: int = 190) -> Markup:
    """A loss curve as SVG: each step thin, a running mean thick; steps without a finite loss are gaps."""
    left, right, top, bottom = 44, 12, 10, 34
    steps, losses = _thinned(np.asarray(curve.steps, dtype=np.float64), np.asarray(curve.losses, dtype=np.float64))
    finite = losses[np.isfinite(losses)]
    ticks_y = _ticks(0.0, float(finite.max()) if finite.size else 1.0, 4)
    ticks_x = _ticks(float(steps[0]), float(steps[-1]), 4)
    high_y = max(ticks_y[-1], float(finite.max()) if finite.size else 1.0) or 1.0
    span_x = float(steps[-1] - steps[0]) or 1.0
    xs = left + (steps - steps[0]) / span_x * (width - left - right)
    ys = top + (1 - losses / high_y) * (height - top - bottom)

    parts = [_open(width, height, f"Training loss by step, {curve.system}, {curve.stage}")]
    for tick in ticks_y:
        y = top + (1 - tick / high_y) * (height - top - bottom)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (tick for tick in ticks_x if steps[0] <= tick <= steps[-1]):
        x = left + (tick - steps[0]) / span_x * (width - left - right)
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 4}" text-anchor="end">step</text>')
    parts += _polylines(xs, ys, "raw")
    parts += _polylines(xs, _running_mean(ys), "mean")
    return Markup("".join(parts) + "</svg>")


def interval_plot(
    rows: Sequence[IntervalRow], *, description: str, ends: tuple[float, float], reference: float, signed: bool = False, width: int = 330
) -> Markup:
    """Values with their intervals, one line each, on an axis of shares printed in per cent from ends[0] to ends[1].

    A dashed line stands at `reference`: a baseline, or zero for differences (`signed`).
    """
    left, right, top, line_height, bottom = 8, 8, 6, 30, 22
    low, high = ends
    height = top + line_height * len(rows) + bottom

    def x(share: float) -> float:
        return left + (min(max(share, low), high) - low) / (high - low) * (width - left - right)

    parts = [_open(width, height, description)]
    floor = height - bottom
    parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{floor}" y2="{floor}"/>')
    for tick in (tick for tick in _ticks(100 * low, 100 * high, 4) if 100 * low <= tick <= 100 * high):
        anchor = "start" if x(tick / 100) < left + 10 else "end" if x(tick / 100) > width - right - 10 else "middle"
        label = f"{tick:+g}".replace("-", "−") if signed and tick else f"{tick:g}"
        parts.append(f'<text x="{x(tick / 100):.1f}" y="{height - 6}" text-anchor="{anchor}">{label}</text>')
    parts.append(f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="{top}" y2="{floor}"/>')
    for index, row in enumerate(rows):
        y = top + line_height * index + 20
        left_end, right_end = x(row.ci95[0]), x(row.ci95[1])
        parts.append(f'<text class="name" x="{left}" y="{y - 8}">{escape(row.title)}</text>')
        parts.append(f'<line class="whisker" x1="{left_end:.1f}" x2="{right_end:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{x(row.value):.1f}" cy="{y}" r="4"/>')
    return Markup("".join(parts) + "</svg>")


def _open(width: int, height: int, description: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(description)}">'


def _ticks(low: float, high: float, about: int) -> list[float]:
    """About so many round numbers from the last below `low` to the first above `high`, a step of 1, 2 or 5 times a power of ten apart."""
    span = max(high - low, 1e-9)
    power = 10 ** np.floor(np.log10(span / about))
    step = float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / about * 0.999))
    return [round(index * step, 10) for index in range(int(np.floor(low / step)), int(np.ceil(high / step - 1e-9)) + 1)]


def _thinned(steps: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most `_MAX_PLOT_POINTS` points, each the mean of neighbouring steps; a mean with a loss that is not finite is NaN."""
    losses = np.where(np.isfinite(losses), losses, np.nan)
    if len(steps) <= _MAX_PLOT_POINTS:
        return steps, losses
    parts = [np.array_split(values, _MAX_PLOT_POINTS) for values in (steps, losses)]
    return np.array([part.mean() for part in parts[0]]), np.array([part.mean() for part in parts[1]])


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a centred window of about a tenth of the curve, of what is finite in it; shorter at the ends."""
    half = max(1, len(values) // 20)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.clip(np.arange(len(values)) - half, 0, None)
    high = np.clip(np.arange(len(values)) + half + 1, None, len(values))
    means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
    return np.where(finite, means, np.nan)


def _polylines(xs: NDArray[np.float64], ys: NDArray[np.float64], css_class: str) -> list[str]:
    """One polyline for each stretch of finite points."""
    finite = np.isfinite(ys)
    breaks = np.flatnonzero(np.diff(finite.astype(int))) + 1
    stretches = [part for part in np.split(np.arange(len(ys)), breaks) if part.size and finite[part[0]]]
    return [f'<polyline class="{css_class}" points="{" ".join(f"{xs[i]:.1f},{ys[i]:.1f}" for i in stretch)}"/>' for stretch in stretches]
