"""The report's figures as text that stands inside an HTML file: SVG drawn here, frames as JPEG data URIs.

The SVG carries classes, no colours: the page's style sheet colours it, in light and in dark.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from rbft.evaluation.curves import LossCurve
from rbft.evaluation.metrics import Interval
from rbft.evaluation.thumbnails import MAX_FRAMES, MAX_HEIGHT, thumbnails
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


def frame_images(clip: Clip, *, max_frames: int = MAX_FRAMES, max_height: int = MAX_HEIGHT) -> list[FrameImage]:
    """Up to `max_frames` frames of a clip, evenly spread from first to last, at most `max_height` pixels high, as JPEG data URIs."""
    from PIL import Image

    small = thumbnails(clip, max_frames=max_frames, max_height=max_height).clip
    images = []
    for time_s, frame_HWC in zip(small.timestamps_s, small.frames_THWC, strict=True):
        image = Image.fromarray(frame_HWC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        images.append(FrameImage(time_s, uri, image.width, image.height))
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


@dataclass(frozen=True)
class Series:
    """A line of a line plot: values with their intervals at some of the plot's places."""

    title: str
    points: tuple[tuple[str, float, Interval], ...]
    """(place on the horizontal axis, share, its 95 % interval)."""


def line_plot(series: Sequence[Series], *, description: str, axis: str, width: int = 560, height: int = 300) -> Markup:
    """Shares against named places (label counts, sizes), evenly apart, as SVG: line, whiskers and a name a series.

    The vertical axis is in per cent and ends at the nearest round numbers around all intervals.
    """
    left, right, top, bottom = 40, 190, 12, 36
    places = list(dict.fromkeys(place for each in series for place, _, _ in each.points))
    ends = [end for each in series for _, _, ci95 in each.points for end in ci95]
    ticks = _ticks(100 * min(ends), 100 * max(ends), 5)
    low, high = ticks[0], ticks[-1]

    def x(place: str, shift: float = 0.0) -> float:
        return left + 14 + places.index(place) / max(1, len(places) - 1) * (width - left - right - 28) + shift

    def y(share: float) -> float:
        return top + (1 - (100 * share - low) / (high - low)) * (height - top - bottom)

    parts = [_open(width, height, description)]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick / 100):.1f}" y2="{y(tick / 100):.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y(tick / 100) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [f'<text x="{x(place):.1f}" y="{height - bottom + 18}" text-anchor="middle">{escape(place)}</text>' for place in places]
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 3}" text-anchor="end">{escape(axis)}</text>')
    names = _apart([y(each.points[-1][1]) for each in series], 15)
    for index, each in enumerate(series):
        shift = 4 * (index - (len(series) - 1) / 2)  # whiskers at one place must not hide each other
        middle = [(x(place, shift), y(value), y(ci95[0]), y(ci95[1])) for place, value, ci95 in each.points]
        parts.append(f'<g class="series series-{index}">')
        parts += [
            f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{low_y:.1f}" y2="{high_y:.1f}"/>' for at, _, low_y, high_y in middle
        ]
        parts.append(f'<polyline points="{" ".join(f"{at:.1f},{value:.1f}" for at, value, _, _ in middle)}"/>')
        parts += [f'<circle class="dot" cx="{at:.1f}" cy="{value:.1f}" r="3.5"/>' for at, value, _, _ in middle]
        parts.append(f'<circle class="dot" cx="{width - right + 11}" cy="{names[index]:.1f}" r="3.5"/>')
        parts.append(f'<text class="name" x="{width - right + 19}" y="{names[index] + 4:.1f}">{escape(each.title)}</text></g>')
    return Markup("".join(parts) + "</svg>")


def beside(plots: Sequence[tuple[str, Markup]], *, gap: int = 24) -> Markup:
    """Plots of this module side by side in one SVG, each under its title."""
    sizes = [re.search(r'width="(\d+)" height="(\d+)"', plot) for _, plot in plots]
    widths, heights = ([int(size[group]) if size else 0 for size in sizes] for group in (1, 2))
    title_height = 22
    parts = [_open(sum(widths) + gap * (len(plots) - 1), max(heights) + title_height, "; ".join(title for title, _ in plots))]
    left = 0
    for (title, plot), width in zip(plots, widths, strict=True):
        parts.append(f'<text class="name" x="{left + 8}" y="14">{escape(title)}</text>')
        parts.append(f'<svg x="{left}" y="{title_height}"{plot[len("<svg") :]}')
        left += width + gap
    return Markup("".join(parts) + "</svg>")


_STANDALONE_STYLE = """
svg { --ink: #22262b; --soft: #5d646d; --line: #e3e0da; --s0: #2f6690; --s1: #a8492f; --s2: #3c7350; --s3: #8a6d1f; background: #fcfbf9; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e3e5e8; --soft: #9aa2ac; --line: #31373f; --s0: #7fb2d9; --s1: #e59377; --s2: #86c29b; --s3: #d9bf6b; background: #15181c; }
}
text { font: 11px system-ui, sans-serif; fill: var(--soft); } .name { fill: var(--ink); } .grid { stroke: var(--line); }
polyline { fill: none; stroke: var(--s0); stroke-width: 1.5; } polyline.raw { opacity: .35; } polyline.mean { stroke-width: 2; }
.whisker { stroke: var(--s0); stroke-width: 2; opacity: .45; } .dot { fill: var(--s0); }
.series-1 :is(polyline, .whisker) { stroke: var(--s1); } .series-1 .dot { fill: var(--s1); }
.series-2 :is(polyline, .whisker) { stroke: var(--s2); } .series-2 .dot { fill: var(--s2); }
.series-3 :is(polyline, .whisker) { stroke: var(--s3); } .series-3 .dot { fill: var(--s3); }
"""


def standalone(plot: Markup) -> str:
    """A plot of this module as the text of an SVG file, with its own colours, light and dark."""
    opening, rest = str(plot).split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{_STANDALONE_STYLE}</style>{rest}\n'


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved down where needed, so that any two are at least `gap` apart; order kept."""
    placed = list(heights)
    order = sorted(range(len(placed)), key=lambda index: placed[index])
    for before, after in itertools.pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    return placed


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
