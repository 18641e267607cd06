"""`predictions.parquet`: what is written comes back, and what is not ours is refused by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rbft.errors import ArtifactError
from rbft.evaluation.predictions import predictions_table, read_predictions, write_predictions
from rbft.records import Prediction, prediction_schema, rationale_schema

PREDICTIONS = [
    Prediction("-a", "normal", "normal", {"normal": 0.75, "abnormal": 0.25}, {"normal": -0.1, "abnormal": -1.2}, "normal", "normal"),
    Prediction("b", None, None, error_code="video_decode", error_message="b.mp4: truncated « after » 3 frames"),
]


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    uri = f"{tmp_path}/evaluation/rb-ft/predictions.parquet"
    write_predictions(PREDICTIONS, uri)
    assert read_predictions(uri) == PREDICTIONS


def test_the_file_carries_the_versioned_schema(tmp_path: Path) -> None:
    write_predictions(PREDICTIONS, f"{tmp_path}/p.parquet")
    schema = pq.read_schema(tmp_path / "p.parquet")
    assert schema.names == prediction_schema().names
    assert schema.metadata[b"rbft.schema"] == b"predictions"


def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for rows in (PREDICTIONS, PREDICTIONS[:1]):
        write_predictions(rows, f"{tmp_path}/p.parquet")
    assert read_predictions(f"{tmp_path}/p.parquet") == PREDICTIONS[:1]
    assert [each.name for each in tmp_path.iterdir()] == ["p.parquet"]


def test_a_file_of_another_schema_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(rationale_schema().empty_table(), path)
    with pytest.raises(ArtifactError, match=r"p\.parquet: holds schema rationales"):
        read_predictions(str(path))


def test_a_map_that_is_not_json_is_refused_with_its_row(tmp_path: Path) -> None:
    table = predictions_table(PREDICTIONS)
    column = table.schema.get_field_index("logprobs")
    pq.write_table(table.set_column(column, "logprobs", pa.array(["{}", "{nonsense"])), tmp_path / "p.parquet")
    with pytest.raises(ArtifactError, match=r"p\.parquet: row b has"):
        read_predictions(f"{tmp_path}/p.parquet")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but not really"])
def test_a_missing_or_broken_file_is_refused_with_its_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"p\.parquet"):
        read_predictions(str(path))
