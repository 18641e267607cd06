import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rbft.data.importers import read_annotations, read_class_folders
from rbft.errors import ManifestError
from rbft.records import Example


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_spreadsheet_csv_with_a_byte_order_mark_crlf_and_stray_spaces_is_read(tmp_path, task):
    text = '\ufeffVideo ID , Path,Label ,split,start,end_s,Description\r\n-x , a.mp4 ,Normal ,train,1.5,,"Says ""hi"",\r\nleaves"\r\n'
    text += "y,/abs/b.mp4, vague abnormal,VAL,,-7,\r\n\r\n,c.mp4\r\n"
    path = _write(tmp_path / "a.csv", text)
    with pytest.raises(ManifestError, match=r"a\.csv line 6: column 'Video ID' is empty"):
        read_annotations(path, task)
    _write(path, text.removesuffix(",c.mp4\r\n"))
    assert read_annotations(path, task) == [
        Example("-x", str(tmp_path / "a.mp4"), "normal", "train", 1.5, None, 'Says "hi",\r\nleaves'),
        Example("y", "/abs/b.mp4", "abnormal", "validation", None, -7.0),
    ]


def test_csv_tsv_jsonl_and_parquet_of_the_same_rows_give_the_same_examples(tmp_path, task):
    rows: list[dict[str, Any]] = [
        {"id": "1", "uri": "a.mp4", "label": "normal", "category": "['Pets', 'Wildlife']", "context": "[Music] hi", "start_s": 2.0},
        {"id": "2", "uri": "b.mp4", "label": "['Abnormal']", "category": None, "context": None, "start_s": None},
    ]
    _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        lines = [separator.join(rows[0])]
        lines += [separator.join(f'"{value}"' if value is not None else "" for value in row.values()) for row in rows]
        _write(tmp_path / name, "\n".join(lines))
    expected = [
        Example("1", str(tmp_path / "a.mp4"), "normal", start_s=2.0, category="Pets, Wildlife", context="[Music] hi"),
        Example("2", str(tmp_path / "b.mp4"), "abnormal"),
    ]
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        assert read_annotations(tmp_path / name, task) == expected, name


def test_json_lists_numbers_and_half_surrogates_become_text(tmp_path, task):
    path = _write(tmp_path / "a.jsonl", '{"id": 7, "uri": "a.mp4", "category": ["a", "b"], "context": "cut \\ud83d", "start_s": 1}\n')
    pq.write_table(pa.table({"id": [12.0, 13.0], "uri": ["a", "b"], "label": ["normal", None]}), tmp_path / "a.parquet")
    example = read_annotations(path, task)[0]
    assert (example.id, example.category, example.context, example.start_s) == ("7", "a, b", "cut \ufffd", 1.0)
    assert [row.id for row in read_annotations(tmp_path / "a.parquet", task)] == ["12", "13"]


def test_keys_that_the_first_jsonl_row_lacks_are_found(tmp_path, task):
    path = _write(tmp_path / "a.jsonl", '{"id": "1", "uri": "a"}\n{"id": "2", "uri": "b", "label": "normal"}\n')
    assert [example.label for example in read_annotations(path, task)] == [None, "normal"]


def test_columns_say_which_is_which_and_guesses_fill_the_rest(tmp_path, task):
    path = _write(tmp_path / "a.csv", "title,clip,verdict,label\nA walk,w.mp4,Normal,x9\n")
    columns = {"id": "label", "uri": "clip", "label": "verdict"}
    assert read_annotations(path, task, columns) == [Example("x9", str(tmp_path / "w.mp4"), "normal", context="A walk")]


def test_without_a_column_for_the_video_it_is_found_by_id_and_without_one_for_the_id_it_is_the_video(tmp_path, task):
    (tmp_path / "videos/deep").mkdir(parents=True)
    (tmp_path / "videos/deep/one.webm").touch()
    by_id = _write(tmp_path / "by_id.csv", "title,class\none,normal\ntwo,abnormal\n")
    by_file = _write(tmp_path / "by_file.csv", "file,class\ndeep/one.webm,normal\n")
    root = tmp_path / "videos"
    assert read_annotations(by_id, task, video_root=root) == [
        Example("one", str(root / "deep/one.webm"), "normal"),
        Example("two", str(root / "two.mp4"), "abnormal"),
    ]
    assert read_annotations(by_file, task, video_root=root) == [Example("deep/one.webm", str(root / "deep/one.webm"), "normal")]


def test_relative_videos_may_lie_in_a_bucket(tmp_path, task):
    path = _write(tmp_path / "a.csv", "id,uri\n1,a.mp4\n")
    assert read_annotations(path, task, video_root="s3://bucket/videos")[0].uri == "s3://bucket/videos/a.mp4"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "id,uri,label\n1,a,normal\n2,b,abnromal\n", "line 3: label 'abnromal' .*did you mean 'abnormal'"),
        ("a.csv", "id,uri,label\n1,a,\"['normal', 'abnormal']\"\n", "line 2: column 'label' holds 2 labels"),
        ("a.csv", "id,uri,split\n1,a,tset\n", "line 2: split 'tset' .*did you mean 'test'"),
        ("a.csv", "id,uri,end_s\n1,a,soon\n", "line 2: column 'end_s' holds 'soon', not a number"),
        ("a.csv", "id,uri,end_s\n1,a,1e999\n", "line 2: column 'end_s' holds '1e999', not a number"),
        ("a.csv", "id,uri\n1,\n", "line 2: column 'uri' is empty"),
        ("a.csv", 'id,uri,text\n1,"a\n\nb.mp4",x\n2,b,one,two\n', "line 5: 4 cells under 3 columns"),
        ("a.csv", 'id,uri\n1,a\n2,"b\n3,c\n', "line 3: .*quoted whole"),
        ("a.csv", "id,uri\n1,ü\n".encode("latin-1"), "is not UTF-8"),
        ("a.csv", "id,uri\n".encode("utf-16"), "is not UTF-8"),
        ("a.csv", "id,uri,id\n1,a,2\n", r"line 1: column\(s\) 'id' stand twice"),
        ("a.csv", "", "no header"),
        ("a.csv", "id,uri\n", "has no rows"),
        ("a.csv", "colour,size\nred,1\n", "no column names the video among 'colour', 'size'"),
        ("a.tsv", "id\turi\n1\ta\tb\n", "line 2: 3 cells under 2 columns"),
        ("a.jsonl", '{"id": 1, "uri": "a"}\n{"id": 2,\n', r"a\.jsonl line 2: is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: is a list, not an object"),
        ("a.jsonl", '{"id": {"x": 1}, "uri": "a"}\n', "line 1: column 'id' holds a mapping"),
        ("a.jsonl", "", "has no rows"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.xlsx", b"PK", "annotations are read from .csv"),
    ],
)
def test_an_error_names_the_file_the_line_and_what_to_do(tmp_path, task, name, content, says):
    with pytest.raises(ManifestError, match=says) as caught:
        read_annotations(_write(tmp_path / name, content), task)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_parquet_error_names_the_row(tmp_path, task):
    pq.write_table(pa.table({"id": ["1", "2"], "uri": ["a", "b"], "label": ["normal", "odd"]}), tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=r"a\.parquet row 2: label 'odd'"):
        read_annotations(tmp_path / "a.parquet", task)


@pytest.mark.parametrize("name", ["no.csv", "no.jsonl", "no.parquet"])
def test_a_missing_file_is_named(tmp_path, task, name):
    with pytest.raises(ManifestError, match=f"{name}: cannot be opened"):
        read_annotations(tmp_path / name, task)


def test_a_wrong_column_mapping_is_refused_with_a_suggestion(tmp_path, task):
    path = _write(tmp_path / "a.csv", "id,uri\n1,a\n")
    with pytest.raises(ManifestError, match="did you mean 'label'"):
        read_annotations(path, task, {"lable": "id"})
    with pytest.raises(ManifestError, match=r"no column 'verdict' \(for label\); it has 'id', 'uri'"):
        read_annotations(path, task, {"label": "verdict"})


def test_a_folder_per_class_becomes_examples(tmp_path, task):
    for name in ("Normal/b.mp4", "Normal/cam1/a.MOV", "vague abnormal/b.mp4", "Normal/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    examples = read_class_folders(tmp_path, task)
    assert [(example.id, example.label) for example in examples] == [
        ("Normal/b.mp4", "normal"),
        ("Normal/cam1/a.MOV", "normal"),
        ("vague abnormal/b.mp4", "abnormal"),
    ]
    assert examples[1].uri == str(tmp_path / "Normal/cam1/a.MOV")


@pytest.mark.parametrize(
    ("name", "says"),
    [("norml/a.mp4", "folder 'norml': .*did you mean 'normal'"), ("a.mp4", "'a.mp4' lies beside the class"), ("a.txt", "no video in it")],
)
def test_a_folder_that_is_no_dataset_is_refused(tmp_path, task, name, says):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ManifestError, match=says):
        read_class_folders(tmp_path, task)
