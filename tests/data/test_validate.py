from dataclasses import replace

import av
import numpy as np
import pytest

from rbft.data.manifest import write_manifest
from rbft.data.validate import trivial_baselines, validate_dataset
from rbft.errors import ManifestError
from rbft.records import Example


@pytest.fixture
def dataset(tmp_path):
    """Nine examples with a file each, all different, split 6 / 3; returns the folder and the examples."""
    examples = []
    for n in range(9):
        label, split = ("normal" if n % 3 == 0 else "abnormal"), ("train" if n < 6 else "test")
        (tmp_path / f"{n}.mp4").write_bytes(b"video %d" % n)
        examples.append(Example(f"v{n}", f"{n}.mp4", label, split, category="Pets" if n in (0, 3, 7) else "Security"))
    return tmp_path, examples


def test_a_sound_dataset_is_usable_and_its_counts_and_baselines_are_told(dataset, task):
    folder, examples = dataset
    write_manifest(examples, folder / "manifest.parquet")
    report = validate_dataset(folder / "manifest.parquet", task)
    assert report.ok
    assert report.counts == {"train": {"normal": 2, "abnormal": 4}, "test": {"normal": 1, "abnormal": 2}}
    assert (report.missing, report.copies, report.leaks, report.problems, report.bad_fraction) == ({}, (), (), (), 0.0)
    # Learned on train: Pets are normal, Security abnormal. Test: v6 normal Security, v7 abnormal Pets, v8 abnormal Security.
    assert [(baseline.num_right, baseline.num_videos) for baseline in report.baselines] == [(2, 3), (1, 3)]
    text = str(report)
    assert "9 videos, usable" in text
    assert "normal 2, abnormal 4" in text
    assert "always 'abnormal': 66.7% (2 of 3)" in text
    assert "each category's majority label: 33.3% (1 of 3)" in text


def test_everything_that_is_wrong_is_told_at_once(dataset, task):
    folder, examples = dataset
    (folder / "1.mp4").unlink()
    (folder / "8.mp4").write_bytes(b"video 0")  # v0 is in train, v8 in test
    (folder / "4.mp4").write_bytes(b"video 5")
    bad = [*examples, replace(examples[2], label="odd"), replace(examples[7], uri="", id="empty")]
    report = validate_dataset(bad, task, base=folder)
    assert not report.ok
    assert set(report.missing) == {"v1", "empty"}
    assert [leak.ids for leak in report.leaks] == [("v0", "v8")]
    assert report.copies == (("v4", "v5"),)
    text = str(report)
    for said in ("NOT usable", "'v2': stand on more than one row", "label 'odd'", "the uri is empty", "'v0', 'v8': the same bytes", "v1: "):
        assert said in text


def test_two_ways_to_write_one_path_are_one_video(dataset, task):
    folder, examples = dataset
    same = [*examples, Example("again", "./x/../0.mp4", "normal", "test")]
    report = validate_dataset(same, task, base=folder, hash_files=False)
    assert [(leak.kind, leak.ids) for leak in report.leaks] == [("uri", ("v0", "again"))]


def test_missing_videos_do_not_stop_a_run_unless_none_is_there(dataset, task):
    folder, examples = dataset
    (folder / "1.mp4").unlink()
    report = validate_dataset(examples, task, base=folder)
    assert report.ok
    assert report.bad_fraction == pytest.approx(1 / 9)
    elsewhere = validate_dataset(examples, task, base=folder / "elsewhere")
    assert not elsewhere.ok
    assert "none of the 9 videos has a file" in elsewhere.problems[0]


def test_each_video_is_probed_where_that_is_asked_and_an_unusable_one_is_told_with_its_code(dataset, task):
    folder, examples = dataset
    _write_video(folder / "0.mp4")
    (folder / "1.mp4").unlink()
    (folder / "2.mp4").write_bytes(b"")
    report = validate_dataset(examples, task, base=folder, probe_videos=True)
    assert "v0" not in report.unusable
    assert list(report.missing) == ["v1"]
    assert report.unusable["v2"].startswith("video_empty: ")
    assert set(report.unusable) == {f"v{n}" for n in range(2, 9)}  # the others hold a few bytes of text
    assert report.bad_fraction == pytest.approx(8 / 9)
    assert validate_dataset(examples, task, base=folder).unusable == {}


def _write_video(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 32
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())


def test_a_long_list_is_cut_and_counted(tmp_path, task):
    examples = [Example(f"v{n}", f"{n}.mp4", "normal") for n in range(25)]
    assert "… and 15 more" in str(validate_dataset(examples, task, base=tmp_path))


def test_unlabelled_videos_can_be_validated_for_inference(dataset, task):
    folder, examples = dataset
    plain = [replace(example, label=None, split=None) for example in examples]
    report = validate_dataset(plain, task, base=folder, require_labels=False)
    assert report.ok
    assert report.counts == {"(no split)": {"normal": 0, "abnormal": 0, "(no label)": 9}}
    assert report.baselines == ()
    assert not validate_dataset(plain, task, base=folder).ok


def test_an_empty_dataset_has_a_problem_and_no_division_by_zero(task, tmp_path):
    report = validate_dataset([], task, base=tmp_path)
    assert not report.ok
    assert "0 videos" in str(report)
    assert report.bad_fraction == 0.0


def test_an_unreadable_manifest_is_raised(tmp_path, task):
    with pytest.raises(ManifestError, match="no such manifest"):
        validate_dataset(tmp_path / "manifest.parquet", task)


def test_baselines_without_a_split_are_measured_on_all_and_ties_go_to_the_earlier_label(task):
    examples = [Example("a", "a", "abnormal"), Example("b", "b", "normal")]
    assert [(baseline.name, baseline.accuracy) for baseline in trivial_baselines(examples, task)] == [("always 'normal'", 0.5)]


def test_an_unseen_category_gets_the_majority_label(task):
    train = [Example(f"t{n}", "", label, "train", category="A") for n, label in enumerate(["normal", "normal", "abnormal"])]
    test = [Example("x", "", "normal", "test", category="B"), Example("y", "", "normal", "test"), Example("z", "", "abnormal", "test")]
    assert [baseline.num_right for baseline in trivial_baselines([*train, *test], task)] == [2, 2]
