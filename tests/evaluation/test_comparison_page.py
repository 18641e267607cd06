"""`rbft compare --html`: what it says of two systems, and the frames of a run's videos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miniature.world import sample_world
from miniature.write import write_world
from rbft import cli, storage
from rbft.data.manifest import read_manifest, write_manifest
from rbft.evaluation.comparison_page import changed_videos, render_comparison
from rbft.evaluation.locate import find_predictions
from rbft.evaluation.predictions import write_predictions
from rbft.evaluation.run_clips import read_run_clips
from rbft.evaluation.side_by_side import side_by_side
from rbft.evaluation.thumbnails import MAX_FRAMES, MAX_HEIGHT
from rbft.layout import RunLayout
from rbft.records import Prediction
from tests.evaluation.sample_report import ATTACK, TASK, sample_predictions


def _files(folder: Path) -> tuple[str, str]:
    """Two files of predictions."""
    for name, share in (("before", 0.5), ("after", 0.9)):
        write_predictions(sample_predictions(share), f"{folder}/{name}.parquet")
    return f"{folder}/after.parquet", f"{folder}/before.parquet"


def test_the_page_lists_what_changed_the_least_sure_first_and_says_how_many_more_there_are(tmp_path: Path) -> None:
    one, other = (find_predictions(file) for file in _files(tmp_path))
    found = side_by_side(one.predictions, other.predictions, TASK.labels, names=("after", "before"))
    (gained,) = changed_videos(found, one.predictions, other.predictions, limit=3)
    assert sorted(gained.ids) == sorted(found.comparison.only_system) and gained.shown == gained.ids[:3]
    numbers = [int(id_.removeprefix("clip-")) for id_ in gained.ids]
    assert numbers == sorted(numbers)  # the sample's confidence rises with the number
    page = " ".join(render_comparison(found, one, other, [gained], {}, seed=0).split())
    assert f"Only after is right: {len(gained.ids)} videos" in page
    assert f"3 are shown, and {len(gained.ids) - 3} more" in page
    assert all(id_ in page for id_ in gained.shown) and f">{gained.ids[3]}<" not in page
    for source in (one.source, other.source):
        assert source.files[0][0] in page and source.files[0][1] in page


def test_whatever_ids_and_names_hold_is_text(tmp_path: Path) -> None:
    rows = [replace(row, id=f"{row.id}{ATTACK}") for row in sample_predictions(0.5)]
    wrong = [replace(row, predicted=None, probabilities={}, error_message=ATTACK, error_code="engine") for row in rows]
    for name, each in (("a", rows), ("b", wrong)):
        write_predictions(each, f"{tmp_path}/{name}.parquet")
    one, other = (find_predictions(f"{tmp_path}/{name}.parquet") for name in ("a", "b"))
    found = side_by_side(one.predictions, other.predictions, TASK.labels, names=(ATTACK, f"other {ATTACK}"))
    page = render_comparison(found, one, other, changed_videos(found, one.predictions, other.predictions, limit=5), {}, seed=0)
    assert ATTACK not in page and page.count("&lt;script&gt;") > 10


def test_of_very_many_labels_the_most_frequent_mistakes_stand_in_place_of_matrices(tmp_path: Path) -> None:
    labels = (*TASK.labels, *(f"label {number}" for number in range(40)))
    one, other = (find_predictions(file) for file in _files(tmp_path))
    after, before = (
        [replace(row, probabilities={label: row.probabilities.get(label, 0.0) for label in labels}) for row in each.predictions]
        for each in (one, other)
    )
    found = side_by_side(after, before, labels, names=("after", "before"))
    page = " ".join(render_comparison(found, one, other, [], {}, seed=0).split())
    assert "The most frequent mistakes" in page and 'class="matrix"' not in page
    mistakes = [
        (label, answered, found.metrics[1].confusion[i][j]) for i, label in enumerate(labels) for j, answered in enumerate(labels) if i != j
    ]
    label, answered, count = max(mistakes, key=lambda mistake: mistake[2])
    assert count > 1 and f'<th scope="row">{label}</th><td>{answered}</td><td>{count} ' in page


def test_two_systems_that_agree_have_nothing_to_show(tmp_path: Path) -> None:
    one, _ = (find_predictions(file) for file in _files(tmp_path))
    found = side_by_side(one.predictions, one.predictions, TASK.labels, names=("a", "b"))
    assert changed_videos(found, one.predictions, one.predictions, limit=5) == ()
    assert "The two give the same answers." in render_comparison(found, one, one, [], {}, seed=0)


def test_the_command_writes_the_page_beside_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pages" / "difference.html"
    assert cli.main(["compare", *_files(tmp_path), "--html", str(page), "--videos", "2"]) == 0
    printed = capsys.readouterr()
    assert "McNemar" in printed.out and str(page) in printed.err
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 2 and "<script" not in text


def test_frames_come_from_the_runs_own_files_and_a_lost_video_has_none(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", sample_world(seed=5, sizes={"test": 2}))
    layout = RunLayout(f"{tmp_path}/run")
    kept, lost = (replace(example, uri=f"{world.parent}/{example.uri}") for example in read_manifest(str(world)))
    write_manifest([kept, replace(lost, uri=f"{tmp_path}/lost.mp4")], layout.manifest)
    storage.write_bytes(layout.config, b"video: {max_frames: 12, max_pixels: 50176}\n")
    clips = read_run_clips(layout.root, [kept.id, lost.id, "of another manifest"])
    assert clips.keys() == {kept.id}
    num_frames, height, _, _ = clips[kept.id].frames_THWC.shape  # of as few and small frames as are shown
    assert num_frames <= MAX_FRAMES and height <= MAX_HEIGHT
    assert read_run_clips(f"{tmp_path}/no-run", [kept.id]) == {}


def test_a_file_of_predictions_is_told_by_its_hash(tmp_path: Path) -> None:
    rows = [Prediction("a", "normal", "normal", {"normal": 0.75, "abnormal": 0.25})]
    write_predictions(rows, f"{tmp_path}/x.parquet")
    first = find_predictions(f"{tmp_path}/x.parquet").source
    write_predictions([replace(rows[0], predicted="abnormal")], f"{tmp_path}/x.parquet")
    second = find_predictions(f"{tmp_path}/x.parquet").source
    assert first.files[0][0] == second.files[0][0] and first.files[0][1] != second.files[0][1]
