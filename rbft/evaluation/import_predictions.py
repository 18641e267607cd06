"""Predictions made elsewhere, from a CSV, TSV, JSON, JSONL or Parquet file: one row for every video that was to be predicted, and no other.

    id                     as in the manifest
    predicted              a label of the task, or an alias of one; blank where the system gave no answer, which counts as wrong
    probability_<label>    optional, one column a label of the task, summing to 1; in JSON also "probabilities": {label: share}
    generated              optional: the text that the system wrote
    error_code             optional, for rows without an answer

Without `predicted`, the likeliest label is the answer. Other columns are not looked at, apart from `label`, which must be the manifest's.
What a worklist exports as CSV (`rbft.evaluation.worklist`) can be read back.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rbft.data.manifest import unknown_label
from rbft.data.tables import Row, read_rows
from rbft.errors import DataError, ManifestError
from rbft.records import Example, Prediction
from rbft.task import Task

PROBABILITY_PREFIX = "probability_"
NO_ANSWER = "no_answer"
"""The error code of a row whose answer is blank."""
_SUM_TOLERANCE = 0.01
"""Of probabilities that were rounded to two decimals."""
_MAX_NAMED = 5


def import_predictions(
    path: Path, examples: Sequence[Example], task: Task, *, id_column: str = "id", answer_column: str = "predicted"
) -> list[Prediction]:
    """The predictions in the file at `path` for the labelled videos among `examples`, in their order.

    Raises:
        DataError: ids that are not of `examples`, missing or there twice, each with their number; a label that is not of the task;
            probabilities of other labels, or that do not sum to 1; the file cannot be read.
    """
    examples = [example for example in examples if example.label is not None]
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path}: has no rows; export the predictions again, one row a video")
    columns = {column for row in rows for column in row.cells}
    if id_column not in columns:
        raise DataError(f"{path}: has no column {id_column!r}; its columns are {', '.join(sorted(columns))}; say --id-column")
    has_probabilities = "probabilities" in columns or any(column.startswith(PROBABILITY_PREFIX) for column in columns)
    if answer_column not in columns and not has_probabilities:
        raise DataError(f"{path}: has no column {answer_column!r} and no probabilities; name the one with the answers with --answer-column")
    by_id = {row.required(id_column): row for row in rows}
    _check_ids(path, [row.required(id_column) for row in rows], [example.id for example in examples])
    return [_prediction(by_id[example.id], example, task, answer_column) for example in examples]


def _rows(path: Path) -> Iterable[Row]:
    if path.suffix.lower() != ".json":
        return read_rows(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())}); export it again") from error
    if isinstance(content, dict):
        content = [{"id": id_, **(value if isinstance(value, dict) else {"predicted": value})} for id_, value in content.items()]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ManifestError(f"{path}: must be a list of objects, or an object of ids with a label or an object each")
    return [Row(path, number, item) for number, item in enumerate(content, start=1)]


def _check_ids(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    known = set(wanted)
    twice = [id_ for id_, count in Counter(found).items() if count > 1]
    unknown = sorted(set(found) - known)
    missing = [id_ for id_ in wanted if id_ not in set(found)] if len(known - set(found)) else []
    problems = [
        f"{len(ids)} {what}: {_some(ids)}"
        for ids, what in (
            (unknown, "unknown, which are no labelled videos of the split"),
            (missing, "missing, for which there must be a row, with a blank answer if there is none"),
            (twice, "there more than once"),
        )
        if ids
    ]
    if problems:
        raise DataError(f"{path}: its ids do not fit the {len(wanted)} videos to predict: {'; '.join(problems)}")


def _prediction(row: Row, example: Example, task: Task, answer_column: str) -> Prediction:
    truth = row.text("label") if answer_column != "label" else None
    if truth is not None and task.normalise_label(truth) != example.label:
        raise DataError(
            f"{row.where}: says that the true label of {example.id!r} is {truth!r}, the manifest {example.label!r}; correct one of them, "
            "or name the column with the answers with --answer-column"
        )
    probabilities = _probabilities(row, task)
    given = row.text(answer_column)
    predicted = None if given is None else task.normalise_label(given)
    if given is not None and predicted is None:
        raise DataError(f"{row.where}: {unknown_label(given, task)}")
    if answer_column not in row.cells and probabilities:
        predicted = max(probabilities, key=lambda label: probabilities[label])
    generated = row.text("generated")
    return Prediction(
        id=example.id,
        label=example.label,
        predicted=predicted,
        probabilities=probabilities,
        generated=generated,
        generated_label=None if generated is None else task.parse_label(generated),
        error_code=None if predicted is not None else row.text("error_code") or NO_ANSWER,
        error_message=None if predicted is not None else row.text("error_message"),
    )


def _probabilities(row: Row, task: Task) -> dict[str, float]:
    """Label -> share of 1, in the task's order; empty where the row has none."""
    cells = {name.removeprefix(PROBABILITY_PREFIX): value for name, value in row.cells.items() if name.startswith(PROBABILITY_PREFIX)}
    nested = row.cells.get("probabilities")
    if isinstance(nested, dict):
        cells |= nested
    cells = {name: value for name, value in cells.items() if not _is_blank(value)}
    if not cells:
        return {}
    shares: dict[str, float] = {}
    for name, value in cells.items():
        label = task.normalise_label(name) or task.normalise_label(name.replace("_", " "))
        if label is None:
            raise DataError(f"{row.where}: a probability of {unknown_label(name, task)}")
        if label in shares:
            raise DataError(f"{row.where}: has two probabilities of {label!r}; sum them up")
        shares[label] = _share(row, name, value)
    lacking = [label for label in task.labels if label not in shares]
    if lacking:
        raise DataError(f"{row.where}: has probabilities, but none of {', '.join(map(repr, lacking))}; give one for every label")
    total = sum(shares.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise DataError(f"{row.where}: its probabilities sum to {total:.4f}, not 1; give shares of 1 (not per cent, not scores)")
    return {label: shares[label] / total for label in task.labels}


def _share(row: Row, name: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise DataError(f"{row.where}: the probability of {name!r} is {value!r}; give a number from 0 to 1")
    return share


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    return ", ".join(map(repr, ids[:_MAX_NAMED])) + more
