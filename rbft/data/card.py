"""The data card: what a dataset holds after its import, and what of it is missing. Lies beside the manifest as `data_card.json` and `.md`.

Counts come in pairs, annotated and imported: what the annotation files name, and what of that is in the manifest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rbft.data.reading import REASONS, Reading
from rbft.data.survey import Survey, VideoFacts
from rbft.data.validate import NO_LABEL, NO_SPLIT, Baseline, identical_files, trivial_baselines
from rbft.records import SPLITS, Example, VideoSpec
from rbft.task import Task

NO_CATEGORY = "(no category)"


@dataclass(frozen=True)
class Share:
    """How many videos the annotations name, and how many of them are in the manifest."""

    annotated: int
    imported: int


Table = dict[str, dict[str, Share]]
"""Row -> label -> share."""


@dataclass(frozen=True)
class Lengths:
    """The clips of one split, after their trims, as a model sees them under `DataCard.frames_as`."""

    num_videos: int
    total_s: float
    shortest_s: float
    median_s: float
    longest_s: float
    num_frames: int
    num_tokens: int
    most_tokens: int
    """Of one video."""


@dataclass(frozen=True)
class DataCard:
    """What `make_card` found. `rbft.data.card_text` writes it for people."""

    name: str
    task: str
    labels: tuple[str, ...]
    annotations: tuple[str, ...]
    """The files or folders that were read."""
    video_root: str | None
    manifest: str | None
    """Where the manifest is; None where none was written."""
    num_videos: Share
    by_split: Table
    by_category: Table
    """A video with several categories counts in each."""
    left_out: dict[str, list[dict[str, str | None]]]
    """Reason -> id, uri (where the file was looked for), split, label of each video that is not in the manifest."""
    num_trimmed: dict[str, int]
    """How many clips in the manifest have a `start_s`, an `end_s`."""
    lengths: dict[str, Lengths]
    """By split; empty where the videos were not opened."""
    frames_as: VideoSpec
    unusable: dict[str, str]
    """Id -> "code: message" of videos in the manifest that could not be decoded; a run makes error rows of them."""
    identical_files: tuple[tuple[str, ...], ...]
    """Ids whose files hold the same bytes, within one split."""
    was_read: bool
    """Whether the videos' bytes were read, so that identical, unusable and lengths mean something."""
    unnamed_files: tuple[str, ...]
    """Video files below `video_root` that no row names."""
    baselines: tuple[Baseline, ...]
    """What guesses without looking score on the imported test videos."""
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return content | {"baselines": [item | {"accuracy": item["num_right"] / item["num_videos"]} for item in content["baselines"]]}


def make_card(
    reading: Reading,
    task: Task,
    *,
    name: str,
    annotations: Sequence[str],
    video_root: str | None = None,
    survey: Survey | None = None,
    spec: VideoSpec | None = None,
    unnamed_files: Sequence[str] = (),
) -> DataCard:
    """The card of `reading`, whose examples are what is imported; `survey` is about them, None where the videos were not opened."""
    examples = list(reading.examples)
    left_out: dict[str, list[dict[str, str | None]]] = {}
    for reason in REASONS:
        gone = [left.example for left in reading.left_out if left.reason == reason]
        if gone:
            left_out[reason] = [{"id": each.id, "uri": each.uri, "split": each.split, "label": each.label} for each in gone]
    facts = survey.facts if survey else {}
    return DataCard(
        name=name,
        task=task.name,
        labels=task.labels,
        annotations=tuple(annotations),
        video_root=video_root,
        manifest=None,
        num_videos=Share(len(reading), len(examples)),
        by_split=_table(reading, task, lambda example: [example.split or NO_SPLIT], [*SPLITS, NO_SPLIT]),
        by_category=_table(reading, task, _categories, []),
        left_out=left_out,
        num_trimmed={side: sum(getattr(example, side) is not None for example in examples) for side in ("start_s", "end_s")},
        lengths=_lengths(examples, facts),
        frames_as=spec or VideoSpec(),
        unusable=survey.unusable if survey else {},
        identical_files=identical_files(examples),
        was_read=survey is not None,
        unnamed_files=tuple(unnamed_files),
        baselines=trivial_baselines(examples, task),
        notes=reading.notes,
    )


def _categories(example: Example) -> list[str]:
    return [part.strip() for part in (example.category or "").split(",") if part.strip()] or [NO_CATEGORY]


def _table(reading: Reading, task: Task, rows_of: Callable[[Example], list[str]], order: Sequence[str]) -> Table:
    """The rows in `order`, then the others, most videos first; nothing where there is but one row and it says there is none."""
    entries = [(example, True) for example in reading.examples] + [(left.example, False) for left in reading.left_out]
    counts: dict[str, dict[str, list[int]]] = {}
    for example, is_imported in entries:
        for row in rows_of(example):
            pair = counts.setdefault(row, {label: [0, 0] for label in task.labels}).setdefault(example.label or NO_LABEL, [0, 0])
            pair[0] += 1
            pair[1] += is_imported
    if list(counts) == [NO_CATEGORY]:
        return {}
    place = {row: number for number, row in enumerate(order)}
    rows = sorted(counts, key=lambda row: (place.get(row, len(place)), -sum(pair[0] for pair in counts[row].values()), row))
    return {row: {label: Share(*pair) for label, pair in counts[row].items()} for row in rows}


def _lengths(examples: Sequence[Example], facts: Mapping[str, VideoFacts]) -> dict[str, Lengths]:
    found = {}
    for split in (*SPLITS, None):
        each = [facts[example.id] for example in examples if example.split == split and example.id in facts]
        if each:
            seconds = [video.duration_s for video in each]
            found[split or NO_SPLIT] = Lengths(
                num_videos=len(each),
                total_s=sum(seconds),
                shortest_s=min(seconds),
                median_s=statistics.median(seconds),
                longest_s=max(seconds),
                num_frames=sum(video.num_frames for video in each),
                num_tokens=sum(video.num_tokens for video in each),
                most_tokens=max(video.num_tokens for video in each),
            )
    return found
