import os
import stat
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.data.manifest import find_problems, read_manifest, validate_examples, write_manifest
from rbft.errors import ArtifactError, ManifestError
from rbft.records import Example, manifest_schema

FULL = Example("-1", "clips/a.mp4", "normal", "train", 1.5, -7.0, "A cat.\nIt sleeps.", "Title: ü 猫", "Pets, Wildlife", "ab" * 32)
GOOD = [Example(f"{label}-{n}", f"{label}/{n}.mp4", label) for label in ("normal", "abnormal") for n in range(3)]

_texts = st.text(st.characters(exclude_categories=["Cs"]))
_seconds = st.none() | st.floats(allow_nan=False)
_examples = st.builds(
    Example, _texts, _texts, st.none() | _texts, st.none() | _texts, _seconds, _seconds, *[st.none() | _texts for _ in range(4)]
)


@settings(deadline=None, max_examples=50)
@given(st.lists(_examples, max_size=5))
def test_a_manifest_reads_back_as_it_was_written(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("manifest") / "manifest.parquet"
    write_manifest(examples, path)
    assert read_manifest(path) == examples


def test_a_manifest_carries_its_schema_and_version(tmp_path):
    write_manifest([FULL], tmp_path / "m.parquet")
    assert pq.read_schema(tmp_path / "m.parquet").equals(manifest_schema(), check_metadata=True)


def test_a_manifest_is_read_and_written_through_a_file_uri(tmp_path):
    write_manifest([FULL], f"file://{tmp_path}/deep/m.parquet")
    assert read_manifest(f"file://{tmp_path}/deep/m.parquet") == read_manifest(tmp_path / "deep/m.parquet") == [FULL]


def test_a_failed_write_leaves_the_old_manifest_and_no_part(tmp_path):
    path = tmp_path / "m.parquet"
    write_manifest([FULL], path)
    with pytest.raises(ManifestError, match="does not fit"):
        write_manifest([replace(FULL, context="half a pair \ud83d")], path)
    assert read_manifest(path) == [FULL]
    assert os.listdir(tmp_path) == ["m.parquet"]


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"m\.parquet: cannot be written") as caught:
        write_manifest([FULL], tmp_path / "file" / "m.parquet")
    assert "\n" not in str(caught.value)


def test_a_written_manifest_can_be_read_by_others(tmp_path):
    write_manifest([FULL], tmp_path / "m.parquet")
    assert (tmp_path / "m.parquet").stat().st_mode & stat.S_IRGRP


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"m\.parquet: no such manifest; make one"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,uri\n1,a.mp4\n"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.parquet: cannot be read as Parquet"):
        read_manifest(tmp_path / "m.parquet")


def test_a_parquet_of_ones_own_is_refused_with_the_way_to_bring_it_in(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "uri": ["a.mp4"]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"schema .*rbft import"):
        read_manifest(tmp_path / "m.parquet")


def test_a_newer_version_is_refused(tmp_path):
    schema = manifest_schema().with_metadata({"rbft.schema": "manifest", "rbft.schema_version": "2"})
    pq.write_table(schema.empty_table(), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="version 2"):
        read_manifest(tmp_path / "m.parquet")


def test_a_null_id_and_a_column_of_another_type_are_refused(tmp_path):
    schema = manifest_schema()
    fields = {name: pa.nulls(1, pa.string()) for name in schema.names}
    pq.write_table(pa.table(fields).replace_schema_metadata(schema.metadata), tmp_path / "null.parquet")
    fields |= {"id": pa.array(["a"]), "uri": pa.array(["a"]), "start_s": pa.array(["soon"])}
    pq.write_table(pa.table(fields).replace_schema_metadata(schema.metadata), tmp_path / "type.parquet")
    for name in ("null", "type"):
        with pytest.raises(ManifestError, match=f"{name}.parquet: a column has the wrong type"):
            read_manifest(tmp_path / f"{name}.parquet")


def test_good_examples_have_no_problem(task):
    assert find_problems(GOOD, task) == []
    assert find_problems([replace(FULL, id=f"-{n}", label=None, split=None) for n in range(2)], task, require_labels=False) == []


def _change(**change: object) -> list[Example]:
    return [replace(GOOD[0], **change), *GOOD[1:]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "no rows"),
        (_change(id=" "), r"row\(s\) '0' .*the id is empty"),
        (_change(id="a\nb"), "control characters"),
        (_change(id="a "), "'a ': hold control characters or begin or end with a space"),
        (_change(id="half \ud83d"), "control characters"),
        ([*GOOD, GOOD[0]], "'normal-0': stand on more than one row"),
        (_change(uri=""), "'normal-0': the uri is empty"),
        (_change(label="abnromal"), "'normal-0': label 'abnromal' .*'doors'.*normal, abnormal.*did you mean 'abnormal'.*label_aliases"),
        (_change(label="Vague Abnormal"), "label 'Vague Abnormal'"),
        (_change(split="valid"), "'normal-0': split 'valid' is not one of train, validation, test; did you mean 'validation'"),
        (_change(split="tset"), "did you mean 'test'"),
        (_change(split="train"), "'normal-1', .*have no split while other rows have one"),
        (_change(label=None), "'normal-0': have no label"),
        (GOOD[:4], "class 'abnormal' has one video .'abnormal-0'.*add videos of it, or map it"),
        (_change(start_s=-1.0), "start_s/end_s"),
        (_change(start_s=float("nan")), "start_s/end_s"),
        (_change(end_s=float("inf")), "start_s/end_s"),
        (_change(end_s=0.0), "start_s/end_s"),
        (_change(start_s=3.0, end_s=3.0), "start_s/end_s"),
    ],
)
def test_a_problem_names_the_row_and_what_to_do(task, examples, says):
    with pytest.raises(ManifestError, match=says) as caught:
        validate_examples(examples, task)
    assert "\n" not in str(caught.value)


def test_ids_that_begin_with_a_dash_or_hold_a_slash_and_ends_counted_from_the_end_are_fine(task):
    assert find_problems(_change(id="-a/b", start_s=2.0, end_s=-1.0), task) == []


def test_what_training_needs_is_not_asked_of_videos_to_classify(task):
    unlabelled = [replace(GOOD[0], label=None), GOOD[1], replace(GOOD[3], split="test")]
    assert find_problems(unlabelled, task, require_labels=False) == []
    assert len(find_problems(unlabelled, task)) == 4  # no label, no split, and each class has one video


def test_many_bad_rows_make_one_line_with_their_number(task):
    bad = [replace(example, label="weird") for example in GOOD]
    with pytest.raises(ManifestError, match="and 1 more: label 'weird'"):
        validate_examples(bad, task)


def test_several_kinds_of_problem_are_counted(task):
    with pytest.raises(ManifestError, match="and 1 more kinds of problem"):
        validate_examples([*_change(uri="", split="tset"), replace(GOOD[0], id="x")], task, require_labels=False)
