"""The templates of this package’s pages, which share one style: the report, comparisons, the paper’s tables."""

from __future__ import annotations

from rbft.evaluation.tables import duration, interval, p_text, percent, points, system_title
from rbft.pages import html_environment

PAGES = html_environment(
    "rbft.evaluation",
    **{"percent": percent, "interval": interval, "points": points, "duration": duration, "system_title": system_title, "p_text": p_text},
)
