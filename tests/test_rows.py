"""Rows that grow part by part: nothing lost, nothing twice, nothing half."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft import artifacts, rows, storage
from rbft.errors import ArtifactError, JobError
from rbft.evaluation.predictions import predictions_table
from rbft.records import Prediction, prediction_schema

SCHEMA = prediction_schema()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "evaluation")


def table(*ids: str, predicted: str = "normal") -> pa.Table:
    return predictions_table([Prediction(id_, "normal", predicted) for id_ in ids])


def failed(*ids: str) -> pa.Table:
    return predictions_table([Prediction(id_, "normal", None, error_code="video_missing", error_message="gone") for id_ in ids])


def finished_ids(folder: str) -> list[str]:
    return list(rows.read_finished(folder, "predictions", SCHEMA)["id"].to_pylist())


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_FILE", 3)
    monkeypatch.setattr(rows, "ROWS_PER_GROUP", 2)


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
    rows.finish(folder, "predictions", SCHEMA, ["b", "a", "c"], "f" * 16, {"run": "r"})
    assert finished_ids(folder) == ["b", "a", "c"]
    assert artifacts.is_complete(folder, "f" * 16)
    assert artifacts.read_marker(folder)["lineage"] == {"run": "r"}


def test_the_end_has_files_of_bounded_size_and_no_parts(folder: str, small_files: None) -> None:
    for ids in ("ab", "cde", "f", "g"):
        rows.write_part(folder, table(*ids))
    rows.finish(folder, "predictions", SCHEMA, "abcdefg", "f" * 16, {})
    assert finished_ids(folder) == list("abcdefg")
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "COMPLETE.json",
        *(f"predictions-{number:05d}.parquet" for number in range(3)),
    ]
    assert [len(table) for table in rows.iterate_finished(folder, "predictions", SCHEMA)] == [3, 3, 1]
    (first, *_) = rows.iterate_finished(folder, "predictions", SCHEMA, ["id"])
    assert first.to_pydict() == {"id": ["a", "b", "c"]}


def test_an_end_without_videos_is_an_end(folder: str) -> None:
    rows.finish(folder, "predictions", SCHEMA, [], "f" * 16, {})
    assert rows.read_finished(folder, "predictions", SCHEMA).equals(SCHEMA.empty_table())


def test_a_folder_that_was_finished_as_one_file_beside_its_parts_is_read(folder: str) -> None:
    """As the first version of this code left them."""
    rows.write_part(folder, table("b"))
    rows.write_part(folder, failed("a"))
    storage.write_table(f"{folder}/predictions.parquet", pa.concat_tables([failed("a"), table("b")]))
    content = storage.read_bytes(f"{folder}/predictions.parquet")
    files = {"predictions.parquet": {"bytes": len(content), "sha256": artifacts.bytes_sha256(content)}}
    artifacts.mark_complete(folder, "f" * 16, files, {})
    assert finished_ids(folder) == ["a", "b"] and rows.done_ids(folder, SCHEMA, errors_too=False) == {"b"}
    assert rows.reopen(folder, SCHEMA) == 1
    rows.write_part(folder, table("a"))
    rows.finish(folder, "predictions", SCHEMA, ["a", "b"], "f" * 16, {})
    assert finished_ids(folder) == ["a", "b"] and rows.reopen(folder, SCHEMA) == 0


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
    file = Path(folder) / "predictions-00000.parquet"
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


def test_errors_can_be_done_again_and_what_worked_then_counts(folder: str) -> None:
    rows.write_part(folder, table("a"))
    rows.write_part(folder, failed("b", "c"))
    rows.finish(folder, "predictions", SCHEMA, ["a", "b", "c"], "f" * 16, {})
    assert rows.reopen(folder, SCHEMA) == 2 and not artifacts.is_complete(folder)
    assert rows.done_ids(folder, SCHEMA, errors_too=False) == {"a"} and rows.done_ids(folder, SCHEMA) == {"a", "b", "c"}
    rows.write_part(folder, table("b"))
    rows.finish(folder, "predictions", SCHEMA, ["a", "b", "c"], "f" * 16, {})
    assert rows.read_finished(folder, "predictions", SCHEMA)["error_code"].to_pylist() == [None, None, "video_missing"]


def test_a_folder_without_errors_stays_complete(folder: str) -> None:
    rows.write_part(folder, table("a"))
    rows.finish(folder, "predictions", SCHEMA, ["a"], "f" * 16, {})
    assert rows.reopen(folder, SCHEMA) == 0 and artifacts.is_complete(folder)


def test_a_part_is_known_by_its_ids(folder: str) -> None:
    rows.write_part(folder, table("a", "b"))
    assert rows.has_part(folder, ["b", "a"]) and not rows.has_part(folder, ["a"])


PARTS = st.lists(st.dictionaries(st.sampled_from("abcde"), st.booleans(), min_size=1), min_size=1, max_size=6)
"""Id -> whether its row is an error, a part each."""


@settings(max_examples=30)
@given(parts=PARTS, again=PARTS, order=st.permutations("abcde"))
def test_whatever_was_written_an_id_ends_in_one_row_and_in_an_error_only_if_it_never_worked(
    parts: list[dict[str, bool]], again: list[dict[str, bool]], order: list[str]
) -> None:
    """`again` comes after the end, when errors are asked about again; a part with the ids of an earlier one takes its place."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "ROWS_PER_FILE", 3)
        patch.setattr(rows, "ROWS_PER_GROUP", 2)
        there: dict[object, dict[str, bool]] = {}
        for written in (parts, again):
            for part in written:
                rows.write_part(folder, pa.concat_tables([(failed if is_error else table)(id_) for id_, is_error in part.items()]))
                there[frozenset(part)] = part
            ids = [id_ for id_ in order if any(id_ in part for part in there.values())]
            worked = {id_ for part in there.values() for id_, is_error in part.items() if not is_error}
            assert rows.done_ids(folder, SCHEMA) == set(ids) and rows.done_ids(folder, SCHEMA, errors_too=False) == worked
            assert sorted(rows.read_parts(folder, SCHEMA)["id"].to_pylist()) == sorted(ids)
            rows.finish(folder, "predictions", SCHEMA, ids, "f" * 16, {})
            found = rows.read_finished(folder, "predictions", SCHEMA)
            assert found["id"].to_pylist() == ids
            assert [code is None for code in found["error_code"].to_pylist()] == [id_ in worked for id_ in ids]
            assert rows.done_ids(folder, SCHEMA) == set(ids) and rows.done_ids(folder, SCHEMA, errors_too=False) == worked
            assert rows.reopen(folder, SCHEMA) == len(ids) - len(worked)
            if artifacts.is_complete(folder):
                break
            there = {"joined": {id_: id_ not in worked for id_ in ids}}


class DiedError(Exception):
    """Of a process that is killed."""


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """`dies(n)`: from now on n changes of the store succeed, and the next one does not happen, or happens by half; None: all succeed."""
    left: list[int | None] = [None]

    def change(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def changed(uri: str, *arguments: Any) -> None:
            if left[0] is None or left[0] > 0:
                left[0] = left[0] and left[0] - 1
                return real(uri, *arguments)
            if name == "delete_folder":
                for info in storage.list_files(uri)[::2]:
                    Path(info.path).unlink()
            raise DiedError

        return changed

    for name in ("write_bytes", "delete_file", "delete_folder"):
        monkeypatch.setattr(storage, name, change(name, getattr(storage, name)))
    return lambda number: left.__setitem__(0, number)


@pytest.mark.parametrize("step", range(8))
def test_a_process_may_die_between_any_two_steps_of_joining_and_of_opening_again(
    folder: str, small_files: None, dies: Callable[[int | None], None], step: int
) -> None:
    ids, errors = list("abcdefgh"), set("cfg")
    for block in ("ab", "de", "h"):
        rows.write_part(folder, table(*block))
    rows.write_part(folder, failed(*sorted(errors)))

    def check() -> None:
        """What must hold at any time."""
        assert rows.done_ids(folder, SCHEMA) == set(ids)
        assert rows.done_ids(folder, SCHEMA, errors_too=False) == set(ids) - errors
        if artifacts.is_complete(folder):
            assert finished_ids(folder) == ids
        else:
            with pytest.raises(ArtifactError, match="not complete"):
                finished_ids(folder)

    def complete() -> None:
        if not artifacts.is_complete(folder):
            rows.finish(folder, "predictions", SCHEMA, ids, "f" * 16, {})

    def with_death(do: Callable[[], Any]) -> bool:
        dies(step)
        try:
            do()
        except DiedError:
            return True
        finally:
            dies(None)
            check()
        return False

    died = with_death(complete)
    complete()
    check()
    died |= with_death(lambda: rows.reopen(folder, SCHEMA))
    rows.reopen(folder, SCHEMA)
    check()
    rows.write_part(folder, table("c"))
    errors.remove("c")
    died |= with_death(complete)
    complete()
    check()
    assert died == (step < 7)
