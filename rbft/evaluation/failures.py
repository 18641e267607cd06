"""Who fails where: two systems on the same videos, counted by what the videos are (the paper's first contribution, in numbers).

For each value of each attribute (label, category, whatever is known): how many videos both get right, only one of them, neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rbft.errors import DataError
from rbft.evaluation.metrics import Mode, answer
from rbft.evaluation.significance import mcnemar_exact
from rbft.evaluation.slices import category_groups
from rbft.evaluation.tables import aligned
from rbft.records import Example, Prediction


@dataclass(frozen=True)
class PairedCounts:
    """Of some videos; `system` and `baseline` are those of the analysis."""

    both_right: int
    only_system: int
    """The system is right, the baseline wrong."""
    only_baseline: int
    both_wrong: int

    @property
    def num_videos(self) -> int:
        return self.both_right + self.only_system + self.only_baseline + self.both_wrong

    @property
    def p_value(self) -> float:
        """McNemar's exact test: two-sided, of as many videos going either way; 1 where none do."""
        return mcnemar_exact(self.only_system, self.only_baseline)


@dataclass(frozen=True)
class FailureAnalysis:
    """What one system gets right that the other gets wrong, and the reverse."""

    system: str
    baseline: str
    overall: PairedCounts
    by_attribute: dict[str, dict[str, PairedCounts]]
    """Attribute -> value -> counts."""
    only_system: tuple[str, ...]
    """Ids of the videos that only the system gets right."""
    only_baseline: tuple[str, ...]

    def lines(self) -> list[tuple[str, PairedCounts]]:
        """Title and counts: all videos, then each value of each attribute that not all of them share."""
        telling = [(name, by_value) for name, by_value in self.by_attribute.items() if len(by_value) > 1]
        values = [(f"{name}: {value}", counts) for name, by_value in telling for value, counts in by_value.items()]
        return [("all", self.overall), *values]


def analyse_failures(
    system: Sequence[Prediction],
    baseline: Sequence[Prediction],
    *,
    names: tuple[str, str],
    attributes: Mapping[str, Mapping[str, Collection[str]]],
    mode: Mode = "likelihood",
) -> FailureAnalysis:
    """Compare `system` with `baseline`, called `names`, on the same ids. `attributes`: attribute -> value -> ids, which may overlap.

    Raises `DataError` if the ids differ.
    """
    ours, theirs = ({row.id: answer(row, mode) == row.label for row in rows} for rows in (system, baseline))
    if ours.keys() != theirs.keys():
        alone = sorted(ours.keys() ^ theirs.keys())
        raise DataError(
            f"{names[0]} and {names[1]} are not paired: {alone[0]} (of {len(alone)}) is in one only; predict the same split with both"
        )
    by_attribute = {
        name: {
            value: _count(ours, theirs, [id_ for id_ in ours if id_ in ids])
            for value, ids in values.items()
            if not ours.keys().isdisjoint(ids)
        }
        for name, values in attributes.items()
    }
    return FailureAnalysis(
        *names,
        overall=_count(ours, theirs, list(ours)),
        by_attribute={name: counts for name, counts in by_attribute.items() if counts},
        only_system=tuple(id_ for id_ in ours if ours[id_] and not theirs[id_]),
        only_baseline=tuple(id_ for id_ in ours if theirs[id_] and not ours[id_]),
    )


def known_attributes(examples: Sequence[Example]) -> dict[str, dict[str, set[str]]]:
    """What manifests know of videos, as `attributes`: label, and category where there is one."""
    labels: dict[str, set[str]] = {}
    for example in examples:
        if example.label is not None:
            labels.setdefault(example.label, set()).add(example.id)
    return {"label": labels, "category": category_groups(examples)}


def analysis_json(analysis: FailureAnalysis) -> dict[str, Any]:
    """For a run's folder."""
    plain = {
        name: {value: asdict(counts) | {"p_value": counts.p_value} for value, counts in values.items()}
        for name, values in {"": {"all": analysis.overall}, **analysis.by_attribute}.items()
    }
    return asdict(analysis) | {"overall": plain.pop("")["all"], "by_attribute": plain}


def analysis_text(analysis: FailureAnalysis) -> str:
    """For a terminal."""
    header = ["", "videos", "both right", f"only {analysis.system}", f"only {analysis.baseline}", "both wrong", "McNemar p"]
    lines = [header, *(_line(title, counts) for title, counts in analysis.lines())]
    return "\n".join(aligned(lines))


def _line(name: str, counts: PairedCounts) -> list[str]:
    numbers = (counts.num_videos, counts.both_right, counts.only_system, counts.only_baseline, counts.both_wrong)
    return [name, *map(str, numbers), f"{counts.p_value:.3g}"]


def _count(ours: Mapping[str, bool], theirs: Mapping[str, bool], ids: Sequence[str]) -> PairedCounts:
    pairs = [(ours[id_], theirs[id_]) for id_ in ids]
    return PairedCounts(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))
