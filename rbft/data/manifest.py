"""The manifest: reading, writing and judging the rows of `manifest.parquet`.

Covered: the file (schema in `rbft.records.manifest_schema`) and what its rows must hold. Not covered: whether the videos exist or can be
decoded (`rbft.data.validate`).
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rbft import storage
from rbft.data.locations import resolve_uri
from rbft.errors import ArtifactError, ManifestError
from rbft.records import SPLITS, Example, check_schema, manifest_schema
from rbft.task import Task

__all__ = ["find_problems", "read_manifest", "resolve_uri", "unknown_label", "unknown_split", "validate_examples", "write_manifest"]

SPLIT_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
_MAX_NAMED = 5
"""Ids named in one message; a message is read by a person."""


def read_manifest(path: str | Path) -> list[Example]:
    """The examples of the manifest at `path` (local or any pyarrow filesystem), in file order, their URIs as written.

    Raises `ManifestError` if there is no such file, it is not Parquet, or it is of another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where, inside = storage.filesystem(str(path))
    try:
        with where.open_input_file(inside) as source:
            table = pq.read_table(source)
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no such manifest; make one with `rbft import`") from error
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read as Parquet ({_one_line(error)}); make it again with `rbft import`") from error
    schema = manifest_schema()
    try:
        check_schema(table.schema, schema, str(path))
        table = table.select(schema.names).cast(schema)
    except ArtifactError as error:
        raise ManifestError(f"{error} (a Parquet file of your own is brought in with `rbft import`)") from error
    except (ValueError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: a column has the wrong type ({_one_line(error)}); make it again with `rbft import`") from error
    return [Example(**row) for row in table.to_pylist()]


def write_manifest(examples: Iterable[Example], path: str | Path) -> None:
    """Write `examples` to `path` as a manifest, whole or not at all; an existing file is replaced.

    Raises `ManifestError` if a value cannot be stored, `ArtifactError` if the file cannot be written.
    """
    import pyarrow as pa

    schema = manifest_schema()
    try:
        table = pa.Table.from_pylist([asdict(example) for example in examples], schema=schema)
    except (pa.ArrowException, UnicodeError) as error:
        raise ManifestError(f"{path}: a value does not fit the manifest's schema ({_one_line(error)}); mend that row") from error
    storage.write_table(str(path), table)


def validate_examples(examples: Sequence[Example], task: Task, *, require_labels: bool = True) -> None:
    """Raise `ManifestError` with the first of `find_problems` and the number of the others; return nothing if there is none."""
    problems = find_problems(examples, task, require_labels=require_labels)
    if problems:
        more = f" (and {len(problems) - 1} more kinds of problem; `rbft validate` lists them)" if len(problems) > 1 else ""
        raise ManifestError(problems[0] + more)


def find_problems(examples: Sequence[Example], task: Task, *, require_labels: bool = True) -> list[str]:
    """What makes `examples` unusable for `task`, one line a kind, with the ids and what to do; empty if they can be used.

    With `require_labels`, what training needs is judged too: a label on every row, no class of a single video, splits on all rows or on
    none. An id is text, never a path: it may hold "/" and may begin with "-", but no control characters and no space at its ends, since
    ids travel through line-based files and logs.
    """
    if not examples:
        return ["the manifest has no rows; import some videos first"]
    problems = [*_id_problems(examples), *_value_problems(examples, task)]
    if require_labels:
        problems += _training_problems(examples, task)
    return problems


def unknown_label(value: str, task: Task) -> str:
    """The sentence that says `value` is no label of `task` and what to do."""
    labels = ", ".join(task.labels)
    near = difflib.get_close_matches(value.strip().lower(), task.labels, n=1)
    hint = f"did you mean {near[0]!r}? Correct it" if near else "correct it"
    return f"label {value!r} is not one of task {task.name!r} ({labels}); {hint}, or map it with label_aliases in the task file"


def unknown_split(value: str) -> str:
    """The sentence that says `value` is no split and what to do."""
    near = SPLIT_ALIASES.get(value.strip().lower()) or next(iter(difflib.get_close_matches(value.strip().lower(), SPLITS, n=1)), None)
    hint = f"; did you mean {near!r}?" if near else ""
    return f"split {value!r} is not one of {', '.join(SPLITS)}{hint}"


def _id_problems(examples: Sequence[Example]) -> list[str]:
    empty = [str(row) for row, example in enumerate(examples) if not example.id.strip()]
    untidy = [example.id for example in examples if example.id.strip() and not _is_tidy(example.id)]
    duplicates = [id for id, count in Counter(example.id for example in examples).items() if count > 1 and id.strip()]
    problems = []
    if empty:
        problems.append(f"row(s) {_some(empty)} (from 0): the id is empty; give every video an id")
    if untidy:
        problems.append(f"id(s) {_some(untidy)}: hold control characters or begin or end with a space; rename them")
    if duplicates:
        problems.append(f"id(s) {_some(duplicates)}: stand on more than one row; keep one row a video or give the clips ids of their own")
    return problems


def _value_problems(examples: Sequence[Example], task: Task) -> list[str]:
    problems = []
    no_uri = [example.id for example in examples if not example.uri.strip()]
    if no_uri:
        problems.append(f"id(s) {_some(no_uri)}: the uri is empty; say where the video is")
    labels: dict[str, list[str]] = {}
    splits: dict[str, list[str]] = {}
    for example in examples:
        if example.label is not None and example.label not in task.labels:
            labels.setdefault(example.label, []).append(example.id)
        if example.split is not None and example.split not in SPLITS:
            splits.setdefault(example.split, []).append(example.id)
    problems += [f"id(s) {_some(ids)}: {unknown_label(label, task)}" for label, ids in labels.items()]
    problems += [f"id(s) {_some(ids)}: {unknown_split(split)}" for split, ids in splits.items()]
    trims = [example.id for example in examples if not _is_trim(example.start_s, example.end_s)]
    if trims:
        problems.append(
            f"id(s) {_some(trims)}: start_s/end_s leave nothing of the clip or are no numbers; start_s is 0 or more, "
            "end_s is more than start_s, or negative to count from the end"
        )
    return problems


def _training_problems(examples: Sequence[Example], task: Task) -> list[str]:
    problems = []
    unlabelled = [example.id for example in examples if example.label is None]
    if unlabelled:
        problems.append(f"id(s) {_some(unlabelled)}: have no label; label them, or keep them for stage 1 only")
    unsplit = [example.id for example in examples if example.split is None and example.label is not None]
    if unsplit and any(example.split is not None for example in examples):
        problems.append(f"id(s) {_some(unsplit)}: have no split while other rows have one; give every row a split or none")
    counts = Counter(example.label for example in examples if example.label in task.labels)
    for label in (label for label in task.labels if counts[label] == 1):
        id = next(example.id for example in examples if example.label == label)
        problems.append(
            f"class {label!r} has one video ({id!r}), which cannot be both learned from and tested on; "
            "add videos of it, or map it onto another label with label_aliases in the task file"
        )
    return problems


def _is_tidy(id: str) -> bool:
    # Cc: control characters; Cs: lone surrogates, which no UTF-8 file can hold.
    return id == id.strip() and not any(unicodedata.category(character) in ("Cc", "Cs") for character in id)


def _is_trim(start_s: float | None, end_s: float | None) -> bool:
    if not all(math.isfinite(seconds) for seconds in (start_s, end_s) if seconds is not None):
        return False
    if start_s is not None and start_s < 0:
        return False
    return end_s is None or end_s < 0 or end_s > (start_s or 0.0)


def _some(ids: Sequence[str]) -> str:
    named = ", ".join(repr(id) for id in ids[:_MAX_NAMED])
    return named if len(ids) <= _MAX_NAMED else f"{named} and {len(ids) - _MAX_NAMED} more"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
