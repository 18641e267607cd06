"""Metrics of parts of a test set: by category, and by how long the clip is. Small parts have wide intervals; those are shown with them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from rbft.errors import DataError
from rbft.evaluation.metrics import Metrics, Mode, evaluate_predictions
from rbft.records import Example, Prediction

DURATION_EDGES_S = (5.0, 15.0, 30.0, 60.0)
"""Ends of the default duration bins, seconds: what 1 FPS makes of them is 5 to 60 frames."""
NO_CATEGORY = "no category"


class Slice(BaseModel):
    """A system's metrics on one part of the test set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: str
    """What divides the set: "category" or "duration"."""
    name: str
    metrics: Metrics


def slice_metrics(
    predictions: Sequence[Prediction],
    labels: Sequence[str],
    groups: Mapping[str, Collection[str]],
    *,
    by: str,
    mode: Mode = "likelihood",
    seed: int = 0,
) -> tuple[Slice, ...]:
    """The metrics of each group of clips, in the order of `groups`: name -> ids. Groups may overlap; one without a prediction is left out.

    Raises:
        DataError: as `evaluate_predictions`.
    """
    members = {name: [row for row in predictions if row.id in ids] for name, ids in groups.items()}
    return tuple(
        Slice(by=by, name=name, metrics=evaluate_predictions(rows, labels, mode, seed=seed)) for name, rows in members.items() if rows
    )


def category_groups(examples: Iterable[Example]) -> dict[str, set[str]]:
    """Category -> ids, by name; a video of several ("Security, Wildlife") is in each of them. Empty where no example has a category."""
    groups: dict[str, set[str]] = {}
    for example in examples:
        parts = [part.strip() for part in (example.category or "").split(",")]
        for name in [part for part in parts if part] or [NO_CATEGORY]:
            groups.setdefault(name, set()).add(example.id)
    if groups.keys() <= {NO_CATEGORY}:
        return {}
    return dict(sorted(groups.items(), key=lambda item: (item[0] == NO_CATEGORY, item[0])))


def duration_groups(durations_s: Mapping[str, float], edges_s: Sequence[float] = DURATION_EDGES_S) -> dict[str, set[str]]:
    """Duration bin -> ids, the shortest first: "under 5 s", "5 to 15 s", …, "60 s or more"; a bin holds its lower end.

    `durations_s`: id -> seconds of the clip, after its trim.

    Raises:
        DataError: `edges_s` do not rise from above 0, or a duration is no positive number.
    """
    if not edges_s or any(low >= high for low, high in zip((0.0, *edges_s), edges_s, strict=False)):
        raise DataError(f"duration bins need rising ends above 0 s, not {', '.join(f'{edge:g}' for edge in edges_s) or 'none'}")
    names = [f"under {edges_s[0]:g} s", *(f"{low:g} to {high:g} s" for low, high in itertools.pairwise(edges_s))]
    groups: dict[str, set[str]] = {name: set() for name in [*names, f"{edges_s[-1]:g} s or more"]}
    for id_, seconds in durations_s.items():
        if not 0 < seconds < math.inf:
            raise DataError(f"clip {id_}: a duration of {seconds} s; give the seconds that are looked at")
        list(groups.values())[bisect.bisect_right(edges_s, seconds)].add(id_)
    return groups
