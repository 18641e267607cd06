"""The readers on the annotation files as published. Collected only where these are there (tests/data/conftest.py)."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from rbft.config import load_task
from rbft.data.card import Share, make_card
from rbft.data.multihateclip import read_multihateclip
from rbft.data.reading import IN_TWO_SPLITS, PRIVATE
from rbft.data.smarthome import ANNOTATION_FILES, read_smarthome
from rbft.data.validate import trivial_baselines
from rbft.task import Task
from tests.data.conftest import PUBLISHED

assert PUBLISHED is not None
SMARTHOME, MULTIHATECLIP = PUBLISHED / "smarthome", PUBLISHED / "multihateclip"
TASKS = Path(__file__).resolve().parent.parent.parent / "configs" / "tasks"


@pytest.mark.parametrize("name", ANNOTATION_FILES)
def test_smarthome_has_1203_rows_91_of_them_vague_180_private_and_407_trims(name: str, tmp_path: Path) -> None:
    reading = read_smarthome(SMARTHOME / name, load_task(TASKS / "smarthome.yaml"), video_root=tmp_path)
    rows = [*reading.examples, *(left.example for left in reading.left_out)]
    assert len(reading) == len({row.id for row in rows}) == 1203
    assert Counter(row.label for row in rows) == {"normal": 554, "abnormal": 558 + 91}
    assert Counter((left.example.label, left.reason) for left in reading.left_out) == {("normal", PRIVATE): 176, ("abnormal", PRIVATE): 4}
    assert Counter(row.label for row in reading.examples) == {"normal": 378, "abnormal": 645}
    vague, trims = reading.notes
    assert vague == "Labelled 'Vague Abnormal', counted as abnormal: 91."
    assert trims.startswith("Trim_video_label.csv: 407 rows (last seconds dropped: 379, first seconds dropped: 23, kept whole: 5)")
    assert sum(row.end_s is not None and row.end_s < 0 for row in rows) == 379
    assert sum(row.start_s is not None and row.start_s > 0 for row in rows) == 23
    assert all(row.human_text and row.category for row in rows)


def test_the_private_ones_are_read_where_their_files_are(tmp_path: Path) -> None:
    private = read_smarthome(SMARTHOME, load_task(TASKS / "smarthome.yaml"), video_root=tmp_path).left_out[0].example.id
    (tmp_path / f"{private}.mp4").touch()
    reading = read_smarthome(SMARTHOME, load_task(TASKS / "smarthome.yaml"), video_root=tmp_path)
    assert private in {example.id for example in reading.examples}
    assert len(reading.left_out) == 179


def test_smarthomes_categories_are_counted_one_by_one(tmp_path: Path) -> None:
    task = load_task(TASKS / "smarthome.yaml")
    card = make_card(read_smarthome(SMARTHOME, task, video_root=tmp_path), task, name="smarthome", annotations=[])
    assert {label: share.annotated for label, share in card.by_category["Wildlife"].items()} == {"normal": 18, "abnormal": 306}
    assert card.num_videos == Share(1203, 1023)
    assert list(card.by_category) == [
        "Security", "Wildlife", "Pet Monitoring", "Kid Monitoring", "Baby Monitoring", "Senior Care", "Other Category",
    ]  # fmt: skip


def test_multihateclip_has_701_100_and_200_rows_one_of_which_is_in_two_splits(tmp_path: Path) -> None:
    reading = read_multihateclip(MULTIHATECLIP, load_task(TASKS / "multihateclip.yaml"), video_root=tmp_path)
    rows = [*reading.examples, *(left.example for left in reading.left_out)]
    assert Counter(row.split for row in rows) == {"train": 701, "validation": 100, "test": 200}
    assert Counter((row.split, row.label) for row in rows) == {
        ("train", "normal"): 464, ("train", "offensive"): 180, ("train", "hateful"): 57,
        ("validation", "normal"): 65, ("validation", "offensive"): 26, ("validation", "hateful"): 9,
        ("test", "normal"): 133, ("test", "offensive"): 51, ("test", "hateful"): 16,
    }  # fmt: skip
    assert [(left.example.split, left.reason) for left in reading.left_out] == [("train", IN_TWO_SPLITS)]
    assert sum(row.id.startswith("-") for row in rows) == 11
    assert {Path(row.uri).parent for row in rows} == {tmp_path}
    assert {row.context for row in rows} == {None}


def test_the_sample_of_texts_becomes_context_and_its_labels_are_not_read(tmp_path: Path) -> None:
    for path in MULTIHATECLIP.iterdir():
        shutil.copyfile(path, tmp_path / path.name.replace(".sample", ""))
    task = load_task(TASKS / "multihateclip.yaml")
    with_text, without = (read_multihateclip(tmp_path, task, with_text=each).examples for each in (True, False))
    assert [example.label for example in with_text] == [example.label for example in without]
    contexts = [example.context for example in with_text if example.context]
    assert 0 < len(contexts) <= 60
    assert all(text.startswith(("Title: ", "Transcript: ")) for text in contexts)
    assert not any("language_check" in text for text in contexts)


def test_guessing_by_category_beats_the_majority_on_smarthome(tmp_path: Path) -> None:
    task: Task = load_task(TASKS / "smarthome.yaml")
    majority, by_category = trivial_baselines(read_smarthome(SMARTHOME, task, video_root=tmp_path).examples, task)
    assert majority.accuracy == pytest.approx(645 / 1023)
    assert by_category.accuracy > majority.accuracy
