"""`predictions.parquet`: written whole or not at all, and read back as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rbft import storage
from rbft.errors import ArtifactError
from rbft.records import Prediction, check_schema, prediction_schema

_MAPS = ("probabilities", "logprobs")


def predictions_table(predictions: Sequence[Prediction], *, masked: bool = False) -> pa.Table:
    """The predictions as a table of `prediction_schema`, the two maps as JSON text."""
    schema = prediction_schema(masked=masked)
    return pa.Table.from_pylist([_row(prediction, schema.names) for prediction in predictions], schema=schema)


def predictions_from_table(table: pa.Table, where: str) -> list[Prediction]:
    """The predictions in a table read from `where`, with what was masked if it says that.

    Raises:
        ArtifactError: another schema, or a map that is not JSON.
    """
    schema = prediction_schema(masked="masked_share" in table.column_names)
    check_schema(table.schema, schema, where)
    return [_prediction(row, where) for row in table.select(schema.names).to_pylist()]


def write_predictions(predictions: Sequence[Prediction], uri: str) -> None:
    """Write the Parquet file `uri`, whole or not at all, replacing what was there."""
    storage.write_table(uri, predictions_table(predictions))


def read_predictions(uri: str) -> list[Prediction]:
    """The predictions in the Parquet file `uri`, in its order.

    Raises:
        ArtifactError: no such file, not Parquet, or another schema.
    """
    return predictions_from_table(storage.read_table(uri), uri)


def _row(prediction: Prediction, columns: Sequence[str]) -> dict[str, Any]:
    row = {column: getattr(prediction, column) for column in columns}
    return row | {column: json.dumps(row[column]) for column in _MAPS}


def _prediction(row: dict[str, Any], where: str) -> Prediction:
    try:
        return Prediction(**(row | {column: json.loads(row[column] or "{}") for column in _MAPS}))
    except ValueError as error:
        raise ArtifactError(f"{where}: row {row['id']} has probabilities or logprobs that are not JSON; evaluate again") from error
