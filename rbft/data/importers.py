"""Annotations of any layout become examples: a table with one row a video, or a folder with one sub-folder a class."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath

from rbft.data.locations import VideosByName, list_videos, resolve_uri
from rbft.data.manifest import SPLIT_ALIASES, unknown_label, unknown_split
from rbft.data.tables import Row, columns_of, literal_list, read_rows
from rbft.errors import ManifestError
from rbft.records import SPLITS, Example
from rbft.task import Task

FIELDS = tuple(field.name for field in fields(Example))

GUESSES: dict[str, tuple[str, ...]] = {
    "id": ("id", "video_id", "videoid", "clip_id", "title", "name"),
    "uri": ("uri", "path", "video_path", "video_uri", "file", "file_path", "filename", "file_name", "video"),
    "label": ("label", "class", "class_name", "target", "anomaly_tag", "majority_voting"),
    "split": ("split", "subset", "partition"),
    "start_s": ("start_s", "start", "start_time"),
    "end_s": ("end_s", "end", "end_time"),
    "human_text": ("human_text", "description", "caption", "video_description"),
    "context": ("context", "text", "transcript", "title"),
    "category": ("category",),
    "sha256": ("sha256",),
}
"""Manifest field -> column names it is looked for under, best first; case, spaces and hyphens do not matter."""


def read_annotations(
    path: str | Path, task: Task, columns: Mapping[str, str] | None = None, *, video_root: str | Path | None = None
) -> list[Example]:
    """The examples of a CSV, TSV, JSONL or Parquet file, one a row, in file order, with absolute URIs.

    `columns` maps manifest fields to columns; the others are found under the names of `GUESSES`. Relative videos are below `video_root`
    (default: the folder of `path`). Without a column for the video, it is the file below `video_root` named as the id; without one for
    the id, the id is the video as written. A blank label is an unlabelled video. Raises `ManifestError` with the file and line.
    """
    path = Path(path)
    root = path.absolute().parent if video_root is None else video_root
    found = _find_columns(path, dict(columns or {}))
    videos = None if "uri" in found else VideosByName(root)
    examples: list[Example] = []
    for row in read_rows(path):
        uri = row.required(found["uri"]) if "uri" in found else None
        id = row.required(found["id"]) if "id" in found else uri
        assert id is not None  # _find_columns has seen to one of the two
        location = videos.locate(id) if videos else resolve_uri(uri or "", root)
        examples.append(_example(row, found, id, location, task))
    if not examples:
        raise ManifestError(f"{path}: has no rows; write one row a video below the header")
    return examples


def read_class_folders(root: str | Path, task: Task) -> list[Example]:
    """The videos of `<root>/<label>/…`, at any depth below the label, sorted; the id is the path below `root`.

    Raises `ManifestError` for a sub-folder that is no label of `task`, or if there is no video.
    """
    examples = []
    for relative, location in list_videos(root).items():
        folder, *below = PurePosixPath(relative).parts
        if not below:
            raise ManifestError(f"{root}: {relative!r} lies beside the class folders; move it into one of {', '.join(task.labels)}")
        label = task.normalise_label(folder)
        if label is None:
            raise ManifestError(f"{root}: folder {folder!r}: {unknown_label(folder, task)}")
        examples.append(Example(id=relative, uri=location, label=label))
    if not examples:
        raise ManifestError(f"{root}: no video in it; put videos into one folder a class ({', '.join(task.labels)})")
    return examples


def label_of(row: Row, column: str, task: Task) -> str | None:
    """The task's label in `column`, None where it is blank; `ManifestError` with file, line and a suggestion for another value."""
    value = row.text(column)
    if value is None:
        return None
    values = [item for item in literal_list(value) if item]
    if not values:
        return None
    if len(values) > 1:
        raise ManifestError(f"{row.where}: column {column!r} holds {len(values)} labels ({value}); name the column that has the one label")
    label = task.normalise_label(values[0])
    if label is None:
        raise ManifestError(f"{row.where}: {unknown_label(values[0], task)}")
    return label


def split_of(row: Row, column: str) -> str | None:
    """The split in `column` ("val", "dev" … are validation), None where it is blank; `ManifestError` for another value."""
    value = row.text(column)
    if value is None:
        return None
    split = SPLIT_ALIASES.get(value.lower(), value.lower())
    if split not in SPLITS:
        raise ManifestError(f"{row.where}: {unknown_split(value)}")
    return split


def _example(row: Row, found: Mapping[str, str], id: str, location: str, task: Task) -> Example:
    texts = {field: row.text(found[field]) for field in ("human_text", "context", "category", "sha256") if field in found}
    if category := texts.get("category"):
        texts["category"] = ", ".join(literal_list(category)) or None
    numbers = {field: row.number(found[field]) for field in ("start_s", "end_s") if field in found}
    return Example(
        id=id,
        uri=location,
        label=label_of(row, found["label"], task) if "label" in found else None,
        split=split_of(row, found["split"]) if "split" in found else None,
        start_s=numbers.get("start_s"),
        end_s=numbers.get("end_s"),
        **texts,
    )


def _find_columns(path: Path, given: dict[str, str]) -> dict[str, str]:
    """Manifest field -> column of the file at `path`: those of `given`, checked, and guesses for the others; no column serves twice."""
    columns = columns_of(path)
    for field, column in given.items():
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ManifestError(f"{path}: columns names the field {field!r}, but the fields are {', '.join(FIELDS)}{hint}")
        if column not in columns:
            raise ManifestError(f"{path}: has no column {column!r} (for {field}); it has {', '.join(map(repr, columns))}")
    found = dict(given)
    by_plain = {re.sub(r"[\s-]+", "_", column.strip().lower()): column for column in columns if column}
    for field, names in GUESSES.items():
        if field not in found:
            free = (by_plain[name] for name in names if name in by_plain and by_plain[name] not in found.values())
            if (guess := next(free, None)) is not None:
                found[field] = guess
    if not columns:
        raise ManifestError(f"{path}: has no rows; write one row a video")
    if "id" not in found and "uri" not in found:
        listed = ", ".join(map(repr, columns))
        raise ManifestError(f"{path}: no column names the video among {listed}; say which with columns, e.g. {{id: {columns[0]!r}}}")
    return found
