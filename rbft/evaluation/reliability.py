"""The reliability plot: how often the likeliest label is right, against how sure the system was. SVG as in `rbft.evaluation.figures`."""

from __future__ import annotations

from markupsafe import Markup, escape

from rbft.evaluation.probabilities import ProbabilityMetrics

_TICKS = (0, 50, 100)


def reliability_plot(found: ProbabilityMetrics, *, description: str, size: int = 220) -> Markup:
    """A dot for each bin that holds clips, its area as their number; axes in per cent. On the dashed diagonal it means what it says.

    Above the diagonal it is more often right than it says, below less often.
    """
    left, right, top, bottom = 40, 12, 12, 34
    side = size - left - right
    height = top + side + bottom

    def x(share: float) -> float:
        return left + share * side

    def y(share: float) -> float:
        return top + (1 - share) * side

    parts = [f'<svg viewBox="0 0 {size} {height}" width="{size}" height="{height}" role="img" aria-label="{escape(description)}">']
    for tick in _TICKS:
        parts.append(f'<line class="grid" x1="{left}" x2="{size - right}" y1="{y(tick / 100):.1f}" y2="{y(tick / 100):.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{y(tick / 100) + 4:.1f}" text-anchor="end">{tick}</text>')
        parts.append(f'<text x="{x(tick / 100):.1f}" y="{top + side + 16}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text class="axis" x="{size - right}" y="{height - 3}" text-anchor="end">probability, %; right, % upwards</text>')
    parts.append(f'<line class="reference" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    for each in (each for each in found.bins if each.num_clips):
        radius = 2.5 + 9 * (each.num_clips / found.num_clips) ** 0.5
        parts.append(f'<circle class="dot" cx="{x(each.confidence):.1f}" cy="{y(each.accuracy):.1f}" r="{radius:.1f}"/>')
    return Markup("".join(parts) + "</svg>")
