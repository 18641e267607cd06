"""LLaVA-style JSON: answers that give a label, answers that describe, and records that cannot be used, each named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbft.data.llava import read_answer, read_llava
from rbft.errors import ManifestError
from rbft.records import Example
from rbft.task import Task
from tests.data.conftest import make_task

TASK = make_task("normal", "abnormal", Vague_Abnormal="abnormal")
LONG = "A man in a red coat walks up to the door, looks around twice, tries the handle and then leaves in a hurry."


def record(id: Any, answer: str | None, video: Any = None, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nIs this normal or abnormal?"}]
    turns += [{"from": "gpt", "value": answer}] if answer is not None else []
    return {"id": id, "video": f"{id}.mp4" if video is None else video, "conversations": turns, **more}


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize(
    ("answer", "label", "text"),
    [
        ("abnormal", "abnormal", None),
        (" **Normal**.\n", "normal", None),
        ("Vague Abnormal", "abnormal", None),
        ("This video is abnormal.", "abnormal", None),
        ("It is not abnormal.", None, "It is not abnormal."),
        ("Nothing abnormal is to be seen.", None, "Nothing abnormal is to be seen."),
        ("Normal or abnormal?", None, "Normal or abnormal?"),
        ("It is abnormally dark.", None, "It is abnormally dark."),
        ("", None, None),
        (LONG, None, LONG),
        (f"{LONG} This would be abnormal at night.", None, f"{LONG} This would be abnormal at night."),
        (f"{LONG}\n\n**Classification:** Abnormal", "abnormal", LONG),
        (f"{LONG}\nabnormal.", "abnormal", LONG),
        (f"{LONG}\nConclusion: nothing abnormal", None, f"{LONG}\nConclusion: nothing abnormal"),
    ],
)
def test_an_answer_gives_a_label_strictly_or_describes(answer: str, label: str | None, text: str | None) -> None:
    assert read_answer(answer, TASK) == (label, text)


@given(st.text(max_size=200))
def test_any_answer_is_a_label_or_kept_as_it_is(answer: str) -> None:
    label, text = read_answer(answer, TASK)
    assert label in (None, *TASK.labels)
    assert label is not None or text == (answer.strip() or None)


def test_records_become_examples_with_their_split(task: Task, tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", record("-a", "Normal"), record(7, LONG), record("c", None, ["sub/c.mp4"]))
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({**record("x", "abnormal"), "id": None}) + "\n")
    assert read_llava([("train", train), ("test", test)], task) == [
        Example("-a", str(tmp_path / "-a.mp4"), "normal", "train"),
        Example("7", str(tmp_path / "7.mp4"), None, "train", human_text=LONG),
        Example("c", str(tmp_path / "sub/c.mp4"), None, "train"),
        Example("x.mp4", str(tmp_path / "x.mp4"), "abnormal", "test"),
    ]


def test_a_path_of_another_machine_is_found_by_the_files_name(task: Task, tmp_path: Path) -> None:
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    (tmp_path / "videos" / "deep" / "a.webm").touch()
    (tmp_path / "videos" / "b.mp4").touch()
    path = write(tmp_path / "x.json", record("a", "normal", "/home/someone/a.mp4"), record("b", "normal", "b.mp4"), record("c", "normal"))
    uris = [example.uri for example in read_llava([(None, path)], task, video_root=tmp_path / "videos")]
    assert uris == [str(tmp_path / "videos" / name) for name in ("deep/a.webm", "b.mp4", "c.mp4")]


def test_rationales_and_labels_of_one_video_are_joined_also_from_two_files(task: Task, tmp_path: Path) -> None:
    rationales = write(tmp_path / "stage1.json", record("a", LONG), record("b", LONG))
    labels = write(tmp_path / "stage2.json", record("b", "Abnormal"), record("a", "Normal"))
    found = read_llava([("train", rationales), ("train", labels)], task)
    assert [(example.id, example.label, example.human_text) for example in found] == [("a", "normal", LONG), ("b", "abnormal", LONG)]


def test_the_same_id_in_two_splits_stays_two_rows_for_the_check_of_leaks(task: Task, tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", record("a", "normal"))
    assert [example.split for example in read_llava([("train", path), ("test", path)], task)] == ["train", "test"]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], r"x\.json: has no records"),
        (["a"], r"record 1: is a str, not an object"),
        (
            [record("a", "normal"), {"id": "b", "image": "b.png", "conversations": []}],
            r"record 2 \(id 'b'\): has no video \(it has id, image",
        ),
        ([record("a", "normal", ["a.mp4", "b.mp4"])], r"record 1 \(id 'a'\): has no video"),
        ([{"id": "a", "video": "a.mp4"}], r"record 1 \(id 'a'\): has no conversations"),
        ([{**record("a", "x"), "conversations": [{"from": "bot", "value": "x"}]}], r"record 1 \(id 'a'\): turn 1 is not"),
        ([{**record("a", "x"), "conversations": [{"from": "gpt", "value": None}]}], r"record 1 \(id 'a'\): turn 1 is not"),
        ([{**record("a", "x"), "conversations": ["x"]}], r"record 1 \(id 'a'\): turn 1 is not"),
        ([{**record("a", "x"), "id": ["a"]}], r"record 1: id is a list"),
        ([record("a", "normal"), record("a", "abnormal")], r"record 2 \(id 'a'\): says 'abnormal', .*record 1 \(id 'a'\) says 'normal'"),
        ([record("a", "normal"), record("a", "normal", "b.mp4")], r"record 2 \(id 'a'\): is about another video than .*record 1"),
        (
            [{**record("a", "x"), "conversations": [{"from": "gpt", "value": "normal"}, {"from": "gpt", "value": "abnormal"}]}],
            r"record 1 \(id 'a'\): its answers give several labels \(normal, abnormal\)",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_named(task: Task, tmp_path: Path, records: list[Any], says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        read_llava([(None, write(tmp_path / "x.json", *records))], task)


@pytest.mark.parametrize(("content", "says"), [("{", "cannot be read as JSON"), ('{"a": 1}', "is a dict, not a list of records")])
def test_a_file_of_another_shape_is_refused(task: Task, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ManifestError, match=says):
        read_llava([(None, tmp_path / "x.json")], task)
    with pytest.raises(ManifestError, match=r"none\.json: cannot be opened"):
        read_llava([(None, tmp_path / "none.json")], task, video_root=tmp_path)
