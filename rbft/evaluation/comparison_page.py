"""`rbft compare --html`: two systems, or one system of two runs, side by side as a page that looks like the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rbft import storage
from rbft.evaluation.html_pages import PAGES
from rbft.evaluation.locate import FoundPredictions
from rbft.evaluation.metrics import METRICS, MODE_TITLES, Metrics, answer, confidence
from rbft.evaluation.probabilities import PROBABILITY_METRICS
from rbft.evaluation.provenance import DEFINITIONS
from rbft.evaluation.reliability import reliability_plot
from rbft.evaluation.report import MAX_MATRIX_LABELS, NUM_LARGEST, comparison_plot
from rbft.evaluation.report_data import UNLABELLED, ShownVideo
from rbft.evaluation.side_by_side import SideBySide, how_read
from rbft.evaluation.tables import METRIC_TITLES, PROBABILITY_TITLES, difference_sentence, plain_difference
from rbft.evaluation.video_cards import VideoCard, make_cards
from rbft.records import Clip, Prediction


@dataclass(frozen=True)
class ChangedVideos:
    """The videos on which two systems differ in one way, those first of which they are the least sure."""

    title: str
    ids: tuple[str, ...]
    shown: tuple[str, ...]
    """The first of them."""


def changed_videos(
    found: SideBySide, system: Sequence[Prediction], baseline: Sequence[Prediction], *, limit: int
) -> tuple[ChangedVideos, ...]:
    """Only the one right, only the other, both wrong in other ways: of each at most `limit` shown; kinds without videos are left out."""
    comparison = found.comparison
    sureness: dict[str, float] = {}
    for rows, mode in zip((system, baseline), comparison.modes, strict=True):
        for row in rows:
            sureness[row.id] = sureness.get(row.id, 0.0) + (confidence(row, mode) or 0.0)
    kinds = [
        (f"Only {comparison.system} is right", comparison.only_system),
        (f"Only {comparison.baseline} is right", comparison.only_baseline),
        ("Both are wrong, with other answers", comparison.both_wrong),
    ]
    in_order = [(title, tuple(sorted(ids, key=lambda id_: (sureness[id_], id_)))) for title, ids in kinds if ids]
    return tuple(ChangedVideos(title, ids, ids[:limit]) for title, ids in in_order)


def render_comparison(
    found: SideBySide,
    one: FoundPredictions,
    other: FoundPredictions,
    changed: Sequence[ChangedVideos],
    clips: Mapping[str, Clip],
    seed: int,
) -> str:
    """The page of `found`, which was made of `one` and `other` with `seed`; `clips`: id -> clip of shown videos that can be decoded."""
    comparison = found.comparison
    names = (comparison.system, comparison.baseline)
    rows = {name: {row.id: row for row in each.predictions} for name, each in zip(names, (one, other), strict=True)}
    probabilities = [
        (PROBABILITY_TITLES[name], [each and getattr(each, name) for each in found.probabilities], _difference(found, name))
        for name in PROBABILITY_METRICS
        if any(each is not None for each in found.probabilities)
    ]
    context = {
        "names": names,
        "headline": difference_sentence(comparison),
        "comparison": comparison,
        "how": how_read(comparison),
        "mode_definitions": [f"by {MODE_TITLES[mode]}" for mode in dict.fromkeys(comparison.modes)],
        "metrics": found.metrics,
        "metric_titles": METRIC_TITLES,
        "has_matrices": len(found.metrics[0].labels) <= MAX_MATRIX_LABELS,
        "largest": _largest_mistakes,
        "probabilities": probabilities,
        "metric_plots": [(METRIC_TITLES[name], comparison_plot((comparison,), name)) for name in METRICS],
        "reliability": [
            (name, reliability_plot(each, description=f"reliability of {name}"))
            for name, each in zip(names, found.probabilities, strict=True)
            if each is not None
        ],
        "changed": [(kind, _cards(kind.shown, rows, clips, found)) for kind in changed],
        "definitions": DEFINITIONS,
        "sources": list(zip(names, (one.source, other.source), strict=True)),
        "files": {name: each.source.line for name, each in zip(names, (one, other), strict=True)},
        "seed": seed,
    }
    return PAGES.get_template("comparison.html.j2").render(context)


def write_comparison(page: str, uri: str) -> None:
    """Write the page to the file `uri`, whole or not at all, replacing what was there."""
    storage.write_bytes(uri, page.encode())


def _largest_mistakes(metrics: Metrics) -> list[tuple[str, str | None, int]]:
    """(label, answer, videos) of the most frequent mistakes; an answer of None is none."""
    answers = (*metrics.labels, None)
    mistakes = [
        (label, answered, count)
        for label, counts in zip(metrics.labels, metrics.confusion, strict=True)
        for answered, count in zip(answers, counts, strict=True)
        if count and answered != label
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:NUM_LARGEST]


def _difference(found: SideBySide, name: str) -> str:
    return plain_difference(found.comparison.probability_differences.get(name))


def _cards(
    ids: Sequence[str], rows: Mapping[str, Mapping[str, Prediction]], clips: Mapping[str, Clip], found: SideBySide
) -> tuple[VideoCard, ...]:
    first = next(iter(rows.values()))
    videos = [
        ShownVideo(
            id=id_,
            label=first[id_].label or UNLABELLED,
            answers={name: of_system[id_] for name, of_system in rows.items()},
            wrong=answer(first[id_], found.comparison.modes[0]) != first[id_].label,
            clip=clips.get(id_),
            rationale=None,
            attention=None,
        )
        for id_ in ids
    ]
    return make_cards(videos, (), found.metrics[0].labels)
