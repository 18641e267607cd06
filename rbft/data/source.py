"""From the `data` section of a run to its examples: the one place that knows which reader serves which key."""

from __future__ import annotations

from dataclasses import replace

from rbft.config import DataConfig
from rbft.data.importers import read_annotations, read_class_folders
from rbft.data.locations import resolve_uri
from rbft.data.manifest import read_manifest
from rbft.data.multihateclip import read_multihateclip
from rbft.data.smarthome import read_smarthome
from rbft.data.split import apply_split_file, split_examples
from rbft.records import Example
from rbft.task import Task


def read_examples(data: DataConfig, task: Task, seed: int) -> list[Example]:
    """The examples of `data`, each with an absolute location and a split: the split file's, else the data's own, else `data.fractions`.

    Not checked here: the rows themselves (`manifest.find_problems`), leaks (`split.check_leaks`). Raises `DataError` or one of its kinds.
    """
    examples = _read(data, task)
    if data.split_file:
        return apply_split_file(examples, data.split_file)
    if all(example.split is None for example in examples):
        return split_examples(examples, data.fractions, seed)
    return examples


def _read(data: DataConfig, task: Task) -> list[Example]:
    if data.manifest:
        folder, slash, _ = data.manifest.rpartition("/")
        base = data.video_root or folder or slash or "."
        return [replace(example, uri=resolve_uri(example.uri, base)) for example in read_manifest(data.manifest)]
    if data.annotations:
        return read_annotations(data.annotations, task, data.columns, video_root=data.video_root)
    if data.folder:
        return read_class_folders(data.folder, task)
    if data.smarthome:
        return read_smarthome(data.smarthome, task, video_root=data.video_root)
    if data.multihateclip:
        return read_multihateclip(data.multihateclip, task, video_root=data.video_root)
    raise AssertionError("DataConfig holds exactly one source")
