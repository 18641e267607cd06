"""Rows that grow part by part: nothing lost, nothing twice, nothing half."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rbft import artifacts, rows
from rbft.errors import ArtifactError, JobError
from rbft.evaluation.predictions import predictions_table
from rbft.records import Prediction, prediction_schema

SCHEMA = prediction_schema()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "evaluation")


def table(*ids: str, predicted: str = "normal") -> pa.Table:
    return predictions_table([Prediction(id_, "normal", predicted) for id_ in ids])


def test_what_is_done_is_what_was_written(folder: str) -> None:
    assert rows.done_ids(folder, SCHEMA) == set()
    rows.write_part(folder, table("a", "b"))
    rows.write_part(folder, table("c"))
    assert rows.done_ids(folder, SCHEMA) == {"a", "b", "c"}


def test_a_block_that_is_done_again_replaces_its_own_part(folder: str) -> None:
    first = rows.write_part(folder, table("a", "b", predicted="normal"))
    second = rows.write_part(folder, table("b", "a", predicted="abnormal"))
    assert second == first
    assert rows.read_parts(folder, SCHEMA)["predicted"].to_pylist() == ["abnormal", "abnormal"]


def test_an_id_in_two_parts_has_one_row(folder: str) -> None:
    rows.write_part(folder, table("a", "b"))
    rows.write_part(folder, table("b", "c"))
    assert sorted(rows.read_parts(folder, SCHEMA)["id"].to_pylist()) == ["a", "b", "c"]


def test_a_part_cut_short_while_it_was_written_does_not_count(folder: str) -> None:
    part = Path(rows.write_part(folder, table("a")))
    (part.parent / f"{part.name}.0123abcd.tmp").write_bytes(b"PAR1 half of it")
    (part.parent / "other.parquet.4567.tmp").write_bytes(b"")
    assert rows.done_ids(folder, SCHEMA) == {"a"}


def test_the_end_has_a_row_an_id_in_the_order_of_the_ids(folder: str) -> None:
    rows.write_part(folder, table("c", "a"))
    rows.write_part(folder, table("b", "more"))
    made = rows.finish(folder, "predictions", SCHEMA, ["b", "a", "c"], "f" * 16, {"run": "r"})
    assert made["id"].to_pylist() == ["b", "a", "c"]
    assert rows.read_finished(folder, "predictions", SCHEMA).equals(made)
    assert artifacts.is_complete(folder, "f" * 16)
    assert artifacts.read_marker(folder)["lineage"] == {"run": "r"}


def test_the_end_is_refused_while_an_id_has_no_row(folder: str) -> None:
    rows.write_part(folder, table("a"))
    with pytest.raises(JobError, match=r"2 videos have no row, e\.g\. b; submit the job again"):
        rows.finish(folder, "predictions", SCHEMA, ["a", "b", "c"], "f" * 16, {})
    assert not artifacts.is_complete(folder)
    with pytest.raises(ArtifactError, match="not complete"):
        rows.read_finished(folder, "predictions", SCHEMA)


def test_altered_bytes_are_noticed(folder: str) -> None:
    rows.write_part(folder, table("a"))
    rows.finish(folder, "predictions", SCHEMA, ["a"], "f" * 16, {})
    file = Path(folder) / "predictions.parquet"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{file}: its bytes have changed"):
        rows.read_finished(folder, "predictions", SCHEMA)


def test_rows_of_another_schema_are_refused(folder: str) -> None:
    other = table("a").replace_schema_metadata({b"rbft.schema": b"predictions", b"rbft.schema_version": b"99"})
    rows.write_part(folder, other)
    with pytest.raises(ArtifactError, match="version 99, this code reads predictions version 1"):
        rows.done_ids(folder, SCHEMA)


def failed(*ids: str) -> pa.Table:
    return predictions_table([Prediction(id_, "normal", None, error_code="video_missing", error_message="gone") for id_ in ids])


def test_errors_can_be_done_again_and_what_worked_then_counts(folder: str) -> None:
    rows.write_part(folder, table("a"))
    rows.write_part(folder, failed("b", "c"))
    rows.finish(folder, "predictions", SCHEMA, ["a", "b", "c"], "f" * 16, {})
    assert rows.reopen(folder, SCHEMA) == 2 and not artifacts.is_complete(folder)
    assert rows.done_ids(folder, SCHEMA, errors_too=False) == {"a"} and rows.done_ids(folder, SCHEMA) == {"a", "b", "c"}
    rows.write_part(folder, table("b"))
    made = rows.finish(folder, "predictions", SCHEMA, ["a", "b", "c"], "f" * 16, {})
    assert made["error_code"].to_pylist() == [None, None, "video_missing"]


def test_a_folder_without_errors_stays_complete(folder: str) -> None:
    rows.write_part(folder, table("a"))
    rows.finish(folder, "predictions", SCHEMA, ["a"], "f" * 16, {})
    assert rows.reopen(folder, SCHEMA) == 0 and artifacts.is_complete(folder)


def test_a_part_is_known_by_its_ids(folder: str) -> None:
    rows.write_part(folder, table("a", "b"))
    assert rows.has_part(folder, ["b", "a"]) and not rows.has_part(folder, ["a"])
