"""From the `data` section of a run to its examples: the one place that knows which reader serves which key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rbft.config import DataConfig
from rbft.data.importers import read_annotations, read_class_folders
from rbft.data.locations import resolve_uri
from rbft.data.manifest import read_manifest
from rbft.data.multihateclip import read_multihateclip
from rbft.data.reading import NOT_IN_SPLIT_FILE, Reading
from rbft.data.smarthome import read_smarthome
from rbft.data.split import apply_split_file, split_examples
from rbft.records import Example
from rbft.task import Task


def read_examples(data: DataConfig, task: Task, seed: int) -> list[Example]:
    """The examples of `data`, each with an absolute location and a split: the split file's, else the data's own, else `data.fractions`.

    Not checked here: the rows themselves (`manifest.find_problems`), leaks (`split.check_leaks`). Raises `DataError` or one of its kinds.
    """
    return list(read_source(data, task, seed).examples)


def read_source(data: DataConfig, task: Task, seed: int) -> Reading:
    """`read_examples`, and beside the examples what was left out."""
    return with_splits(_read(data, task), data.split_file, data.fractions, seed)


def with_splits(reading: Reading, split_file: str | None, fractions: Mapping[str, float], seed: int) -> Reading:
    """`reading` with a split on every example: the split file's, else the data's own, else by `fractions`."""
    examples = list(reading.examples)
    if split_file:
        kept = apply_split_file(examples, split_file, also_known={left.example.id for left in reading.left_out})
        named = {example.id for example in kept}
        rest = reading.leaving_out({example.id: NOT_IN_SPLIT_FILE for example in examples if example.id not in named})
        return replace(rest, examples=tuple(kept))
    if all(example.split is None for example in examples):
        return replace(reading, examples=tuple(split_examples(examples, fractions, seed)))
    return reading


def _read(data: DataConfig, task: Task) -> Reading:
    if data.manifest:
        folder, slash, _ = data.manifest.rpartition("/")
        base = data.video_root or folder or slash or "."
        return Reading(tuple(replace(example, uri=resolve_uri(example.uri, base)) for example in read_manifest(data.manifest)))
    if data.annotations:
        return Reading(tuple(read_annotations(data.annotations, task, data.columns, video_root=data.video_root)))
    if data.folder:
        return Reading(tuple(read_class_folders(data.folder, task)))
    if data.smarthome:
        return read_smarthome(data.smarthome, task, video_root=data.video_root)
    if data.multihateclip:
        return read_multihateclip(data.multihateclip, task, video_root=data.video_root, with_text=data.with_text)
    raise AssertionError("DataConfig holds exactly one source")
