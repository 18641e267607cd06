"""The paper's Figure 2 with our models: attention on the frames side by side, and how much of it falls on the objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rbft.config import AttentionConfig, MaskingConfig
from rbft.evaluation.looking.focus import Enrichment, EnrichmentDifference, Focus, compare_enrichment, enrichment

SYSTEMS = ("direct-sft-1", "rb-ft")
"""Those whose attention the paper lays side by side."""


@dataclass(frozen=True)
class FigureRow:
    """One model."""

    here: Enrichment
    """Of its attention in the videos' own boxes."""
    elsewhere: Enrichment
    """In the boxes of other videos."""


@dataclass(frozen=True)
class Strip:
    """One video: its frames, and the models' heatmaps under them."""

    id: str
    caption: str
    png: str
    """Base64."""


@dataclass(frozen=True)
class Figure2:
    """The figure as it is shown."""

    title: str
    rows: dict[str, FigureRow]
    differences: dict[str, EnrichmentDifference]
    """What is compared, in words -> the difference."""
    how: str
    boxes: str
    strips: tuple[Strip, ...]


def make_rows(focuses: Mapping[str, tuple[Mapping[str, Focus], Mapping[str, Focus]]], seed: int) -> dict[str, FigureRow]:
    """`focuses`: name of a model -> its focus by video, in the videos' own boxes and in those of others. Raises `DataError` without any."""
    return {name: FigureRow(enrichment(here, seed), enrichment(elsewhere, seed)) for name, (here, elsewhere) in focuses.items()}


def difference(system: Mapping[str, Focus], baseline: Mapping[str, Focus], seed: int) -> EnrichmentDifference:
    """`system` minus `baseline` on the videos where both can be measured."""
    shared = system.keys() & baseline.keys()
    ours, theirs = ({id_: each[id_] for id_ in sorted(shared)} for each in (system, baseline))
    return compare_enrichment(ours, theirs, seed)


def how_read(attention: AttentionConfig) -> str:
    """In words, for the page."""
    weighed = "" if attention.method == "attention" else ", weighted with its effect on the answer"
    return f"mean over heads and the last {attention.num_layers} layers{weighed}, each map scaled on its own"


def whose_boxes(masking: MaskingConfig) -> str:
    """In words, for the page; `masking` as it was asked for, not with the file that grounding has made."""
    if masking.boxes is not None:
        return f"Boxes are of {masking.boxes.rpartition('/')[2]}, the {masking.num_objects} most salient objects of a video"
    if masking.find == "grounding":
        return f"Boxes are where the base model itself sees objects (grounding), the {masking.num_objects} most salient of a video"
    return f"Boxes are around what moves and stands out, up to {masking.num_objects} a frame"


def figure_json(figure: Figure2) -> dict[str, Any]:
    """For the run's folder."""
    return {
        "title": figure.title,
        "models": {
            name: {"here": row.here.model_dump(mode="json"), "elsewhere": row.elsewhere.model_dump(mode="json")}
            for name, row in figure.rows.items()
        },
        "differences": {name: each.model_dump(mode="json") for name, each in figure.differences.items()},
        "how": figure.how,
        "boxes": figure.boxes,
        "shown": [strip.id for strip in figure.strips],
    }


def figure_text(figure: Figure2) -> str:
    """For a terminal."""
    lines = [figure.title, ""]
    for name, row in figure.rows.items():
        low, high = row.here.enrichment_ci95
        lines.append(
            f"{name}: {row.here.enrichment:.2f} [{low:.2f}, {high:.2f}] times as much attention inside the boxes as their area; "
            f"in other videos' boxes {row.elsewhere.enrichment:.2f}"
        )
    lines += [f"{name}: {each.value:+.2f} [{each.ci95[0]:.2f}, {each.ci95[1]:.2f}]" for name, each in figure.differences.items()]
    return "\n".join([*lines, "", f"{figure.how}. {figure.boxes}."])
