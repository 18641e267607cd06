"""Everything that can be wrong with a dataset before a GPU is rented, in one report: what `rbft validate` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyarrow import fs

from rbft import storage
from rbft.data.locations import resolve_uri
from rbft.data.manifest import find_problems, read_manifest
from rbft.data.split import Leak, find_leaks, hash_videos
from rbft.data.survey import survey_videos
from rbft.data.trivial import trivial_answers
from rbft.errors import ArtifactError
from rbft.records import SPLITS, Example
from rbft.task import Task

NO_SPLIT = "(no split)"
NO_LABEL = "(no label)"
_MAX_LISTED = 10


@dataclass(frozen=True)
class Baseline:
    """What a guess without looking at the video scores: learned on train, measured on test (on all videos where there is no split)."""

    name: str
    num_right: int
    num_videos: int

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_videos


@dataclass(frozen=True)
class ValidationReport:
    """What `validate_dataset` found. `str()` of it is the text to print."""

    name: str
    num_videos: int
    counts: dict[str, dict[str, int]]
    """Split -> label -> number of videos; `NO_SPLIT` and `NO_LABEL` where there is none."""
    problems: tuple[str, ...] = ()
    """What stops a run, one line each, with what to do."""
    leaks: tuple[Leak, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()
    """Ids whose files hold the same bytes, within one split."""
    missing: dict[str, str] = field(default_factory=dict)
    """Id -> location at which there is no file."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Id -> "code: message" of the videos that could not be decoded."""
    baselines: tuple[Baseline, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a run may start. Missing and unusable videos do not stop one: they become error rows (`max_bad_fraction` limits them)."""
        return not self.problems and not self.leaks

    @property
    def bad_fraction(self) -> float:
        """The share of videos that are missing or unusable, 0..1."""
        return len({*self.missing, *self.unusable}) / self.num_videos if self.num_videos else 0.0

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.num_videos} videos, {'usable' if self.ok else 'NOT usable'}"]
        for split, counts in self.counts.items():
            share = ", ".join(f"{label} {count}" for label, count in counts.items())
            lines.append(f"  {split:<12}{sum(counts.values()):>6}   {share}")
        for baseline in self.baselines:
            lines.append(f"  baseline, {baseline.name}: {baseline.accuracy:.1%} ({baseline.num_right} of {baseline.num_videos})")
        lines += _section("problem", "problems", self.problems)
        lines += _section("leak", "leaks", [str(leak) for leak in self.leaks])
        lines += _section("group of identical files", "groups of identical files", [", ".join(map(repr, ids)) for ids in self.copies])
        lines += _section("video without a file", "videos without a file", [f"{id}: {location}" for id, location in self.missing.items()])
        lines += _section("video that cannot be used", "videos that cannot be used", [f"{id}: {why}" for id, why in self.unusable.items()])
        return "\n".join(lines)


def validate_dataset(
    manifest: str | Path | Sequence[Example],
    task: Task,
    *,
    base: str | Path | None = None,
    require_labels: bool = True,
    hash_files: bool = True,
    probe_videos: bool = False,
) -> ValidationReport:
    """The report on a manifest file, or on examples whose URIs are relative to `base` (default: the manifest's folder).

    `hash_files` reads every file once, to find the same bytes under two names; `probe_videos` decodes a little of every video.
    Raises `ManifestError` if the manifest cannot be read at all.
    """
    if isinstance(manifest, (str, Path)):
        name, examples = str(manifest), read_manifest(manifest)
        base = base if base is not None else _folder_of(manifest)
    else:
        name, examples = f"dataset for {task.name}", list(manifest)
        base = base if base is not None else Path()
    # Compared as locations: two rows may write the path of one file differently.
    examples = [replace(example, uri=resolve_uri(example.uri, base)) if example.uri.strip() else example for example in examples]
    problems = find_problems(examples, task, require_labels=require_labels)
    missing = missing_videos(examples)
    if examples and len(missing) == len(examples):
        problems.append(f"none of the {len(examples)} videos has a file, e.g. {next(iter(missing.values()))}; check video_root")
    present = [example for example in examples if example.id not in missing and example.uri.strip()]
    if hash_files:
        hashes = {example.id: example.sha256 for example in hash_videos(present, base)}
        examples = [replace(example, sha256=example.sha256 or hashes.get(example.id)) for example in examples]
    return ValidationReport(
        name=name,
        num_videos=len(examples),
        counts=_counts(examples, task),
        problems=tuple(problems),
        leaks=tuple(find_leaks(examples)),
        copies=identical_files(examples),
        missing=missing,
        unusable=survey_videos(present).unusable if probe_videos else {},
        baselines=trivial_baselines(examples, task),
    )


def trivial_baselines(examples: Sequence[Example], task: Task) -> tuple[Baseline, ...]:
    """Majority label, and each category's majority label where there are categories; none where no labelled video is left to measure on.

    As `rbft.data.trivial` has them.
    """
    labelled = [example for example in examples if example.label in task.labels]
    train = [example for example in labelled if example.split == "train"]
    test = [example for example in labelled if example.split == "test"]
    if not train or not test:
        train = test = labelled
    if not test:
        return ()
    answers = trivial_answers(train, test, task.labels)
    return tuple(
        Baseline(name, sum(given == example.label for given, example in zip(answer, test, strict=True)), len(test))
        for name, answer in answers.items()
    )


def _counts(examples: Sequence[Example], task: Task) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for example in examples:
        counts.setdefault(example.split or NO_SPLIT, Counter())[example.label or NO_LABEL] += 1
    splits = [split for split in SPLITS if split in counts] + sorted(set(counts) - set(SPLITS))
    labels = [*task.labels, *sorted({label for count in counts.values() for label in count} - set(task.labels))]
    return {split: {label: counts[split][label] for label in labels if label in task.labels or counts[split][label]} for split in splits}


def missing_videos(examples: Sequence[Example]) -> dict[str, str]:
    """Id -> location of the `examples` whose location holds no file."""

    def is_file(location: str) -> bool:
        try:
            where, path = storage.filesystem(location)
            return bool(where.get_file_info(path).type == fs.FileType.File)
        except (OSError, ArtifactError):
            return False

    with ThreadPoolExecutor(8) as pool:  # a look-up on an object store is all waiting
        found = pool.map(is_file, (example.uri for example in examples))
        return {example.id: example.uri for example, is_there in zip(examples, found, strict=True) if not is_there}


def identical_files(examples: Sequence[Example]) -> tuple[tuple[str, ...], ...]:
    """The groups of ids, each within one split, whose files hold the same bytes, where `sha256` is known."""
    groups: dict[tuple[str | None, str], dict[str, None]] = {}
    for example in examples:
        if example.sha256 is not None:
            groups.setdefault((example.split, example.sha256), {})[example.id] = None
    return tuple(tuple(ids) for ids in groups.values() if len(ids) > 1)


def _folder_of(manifest: str | Path) -> str:
    folder, slash, _ = str(manifest).rpartition("/")
    return folder or slash or "."


def _section(one: str, many: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    … and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return [f"  {len(lines)} {one if len(lines) == 1 else many}:", *(f"    {line}" for line in lines[:_MAX_LISTED]), *more]
