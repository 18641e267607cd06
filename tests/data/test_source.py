"""Every kind of source that the `data` section can name becomes examples with absolute locations and a split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbft.config import DataConfig
from rbft.data.manifest import write_manifest
from rbft.data.source import read_examples
from rbft.errors import DataError, ManifestError
from rbft.records import Example
from rbft.task import Task


def examples_of(task: Task, **fields: object) -> dict[str, Example]:
    return {example.id: example for example in read_examples(DataConfig.model_validate(fields), task, seed=0)}


def test_a_manifests_videos_are_relative_to_it_or_to_the_video_root(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest([Example("a", "clips/a.mp4", "normal", "train"), Example("b", "/abs/b.mp4", "abnormal", "test")], path)
    found = examples_of(task, manifest=str(path))
    assert [found["a"].uri, found["b"].uri] == [str(tmp_path / "clips" / "a.mp4"), "/abs/b.mp4"]
    assert [found["a"].split, found["b"].split] == ["train", "test"]
    assert examples_of(task, manifest=str(path), video_root="/videos")["a"].uri == "/videos/clips/a.mp4"


def test_annotations_are_read_with_the_columns_given(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("clip,what\na.mp4,Normal\nb.mp4,Vague Abnormal\n" + "".join(f"n{i}.mp4,normal\nx{i}.mp4,abnormal\n" for i in range(4)))
    found = examples_of(task, annotations=str(path), columns={"uri": "clip", "label": "what"})
    assert (found["a.mp4"].label, found["b.mp4"].label) == ("normal", "abnormal")
    assert found["a.mp4"].uri == str(tmp_path / "a.mp4")
    # 5 of each class at 80/20.
    assert sum(example.split == "test" for example in found.values()) == 2


def test_a_folder_a_class_is_split_by_the_fractions(task: Task, tmp_path: Path) -> None:
    for label in task.labels:
        (tmp_path / label).mkdir()
        for number in range(10):
            (tmp_path / label / f"{number}.mp4").write_bytes(b"")
    found = examples_of(task, folder=str(tmp_path), fractions={"train": 0.5, "validation": 0.2, "test": 0.3})
    assert {split: sum(example.split == split for example in found.values()) for split in ("train", "validation", "test")} == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }


def test_a_split_file_wins_over_the_datas_own_split_and_over_fractions(task: Task, tmp_path: Path) -> None:
    path, split_file = tmp_path / "manifest.parquet", tmp_path / "split.json"
    write_manifest([Example(id, f"{id}.mp4", "normal", "train") for id in "abc"], path)
    split_file.write_text(json.dumps({"train": ["a"], "test": ["b"]}))
    found = examples_of(task, manifest=str(path), split_file=str(split_file))
    assert {id: example.split for id, example in found.items()} == {"a": "train", "b": "test"}


def test_the_published_datasets_are_named_by_their_folder(task: Task, hate_task: Task, fixtures: Path) -> None:
    multihateclip = examples_of(hate_task, multihateclip=str(fixtures / "multihateclip"))
    assert {example.split for example in multihateclip.values()} == {"train", "validation", "test"}
    smarthome = examples_of(task, smarthome=str(fixtures / "smarthome"), video_root=str(fixtures / "smarthome"))
    assert {example.split for example in smarthome.values()} == {"train", "test"}
    assert all(Path(example.uri).is_absolute() for example in smarthome.values())


def test_what_cannot_be_read_is_an_error_of_the_data(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        examples_of(task, manifest=str(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match="no such folder"):
        examples_of(task, folder=str(tmp_path / "none"))


def test_titles_and_transcripts_are_read_where_the_configuration_asks(hate_task: Task, fixtures: Path) -> None:
    folder = str(fixtures / "multihateclip")
    assert {example.context for example in examples_of(hate_task, multihateclip=folder).values()} == {None}
    assert examples_of(hate_task, multihateclip=folder, with_text=True)["aaaaaaaaaa2"].context == "Title: Rain on a roof"
    with pytest.raises(ValueError, match="with_text is about multihateclip"):
        DataConfig.model_validate({"folder": folder, "with_text": True})
