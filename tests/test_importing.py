"""`rbft import`, as a person runs it: published annotation files and a folder of videos in, a manifest and a data card out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rbft import cli
from rbft.data.manifest import read_manifest
from rbft.records import Example
from tests.samples import write_video

FIXTURES = Path(__file__).parent / "data" / "fixtures"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine videos of 8 seconds, each with bytes of its own."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"{seed}.mp4", seconds=8, seed=seed) for seed in range(9)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def place(clips: list[Path], folder: Path, *names: str) -> None:
    for clip, name in zip(clips, names, strict=False):
        shutil.copy(clip, folder / name)


def run(*arguments: Any) -> int:
    return cli.main(["import", *map(str, arguments)])


def read_card(out: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((out.parent / "data_card.json").read_text())
    assert (out.parent / "data_card.md").read_text().startswith(f"# Data card: {card['name']}\n")
    return card


def by_id(out: Path) -> dict[str, Example]:
    return {example.id: example for example in read_manifest(out)}


def test_smarthome_becomes_a_manifest_of_what_is_there_and_a_card(
    clips: list[Path], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = (1, 2, 3, 5, 6, 8)  # 7 is missing; 4 is private and missing, 8 is private and there
    place(clips, videos, *(f"smartbench_000{number}.mp4" for number in there), "holiday.mp4")
    out = tmp_path / "out" / "manifest.parquet"
    assert run("smarthome", FIXTURES / "smarthome", "--videos", videos, "--out", out) == 0
    found = by_id(out)
    assert [id[-1] for id in found] == [str(number) for number in there]
    assert all(example.sha256 and Path(example.uri).is_file() and example.split for example in found.values())
    assert (found["smartbench_0002"].end_s, found["smartbench_0005"].start_s) == (-7.0, 6.0)
    card = read_card(out)
    assert card["num_videos"] == {"annotated": 8, "imported": 6}
    assert {reason: [video["id"] for video in gone] for reason, gone in card["left_out"].items()} == {
        "private": ["smartbench_0004"],
        "missing": ["smartbench_0007"],
    }
    assert card["unnamed_files"] == ["holiday.mp4"]
    # Six clips of 8 s, of which one loses its last 7 s and one its first 6 s; no file is changed.
    assert sum(each["total_s"] for each in card["lengths"].values()) == pytest.approx(4 * 8 + 1 + 2, abs=0.01)
    assert sum(each["num_frames"] for each in card["lengths"].values()) == 4 * 8 + 4 + 4
    assert sum(each["num_tokens"] for each in card["lengths"].values()) == (4 * 8 + 4 + 4) // 2 * 4
    assert (card["unusable"], card["identical_files"], card["was_read"]) == ({}, [], True)
    printed = capsys.readouterr().out
    assert "smarthome: 6 of 8 annotated videos imported" in printed
    assert "1 left out, the published URL is private and no file is there: smartbench_0004" in printed
    assert f"rbft plan --config configs/smarthome-qwen2.5-vl-7b.yaml --set data.smarthome=null --set data.manifest={out}" in printed


@pytest.mark.parametrize(("name", "num_rows"), [("smarthome", 8), ("multihateclip", 10)])
def test_an_empty_folder_of_videos_ends_in_a_card_and_exit_code_1(
    name: str, num_rows: int, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "manifest.parquet"
    assert run(name, FIXTURES / name, "--videos", videos, "--out", out) == 1
    assert not out.exists()
    card = read_card(out)
    assert (card["num_videos"], card["manifest"]) == ({"annotated": num_rows, "imported": 0}, None)
    assert sum(map(len, card["left_out"].values())) == num_rows
    printed, errors = capsys.readouterr()
    assert f"no manifest was written, as no video has a file; {tmp_path}/data_card.md lists what is missing" in printed
    assert errors == ""


def test_the_published_repositories_are_read_as_they_are_cloned(clips: list[Path], tmp_path: Path) -> None:
    source, clone = FIXTURES / "smarthome", tmp_path / "SmartHome-Bench-LLM"
    (clone / "Videos" / "Trim_Videos").mkdir(parents=True)
    shutil.copy(source / "Annotation_vad_1203.csv", clone / "Videos" / "Annotation_vad_1203.csv")
    shutil.copy(source / "Video_url.csv", clone / "Videos")
    shutil.copy(source / "Trim_video_label.csv", clone / "Videos" / "Trim_Videos")
    place(clips, clone / "Videos", *(f"smartbench_000{number}.mp4" for number in (1, 2, 3, 5, 6, 7)))
    out = tmp_path / "m.parquet"
    assert run("smarthome", clone, "--out", out, "--quick") == 0
    assert by_id(out)["smartbench_0002"].end_s == -7.0
    assert run("smarthome", clone, "--out", out, "--quick", "--no-trims") == 0
    assert {(example.start_s, example.end_s) for example in by_id(out).values()} == {(None, None)}

    english = tmp_path / "English_data"
    shutil.copytree(FIXTURES / "multihateclip", english / "annotation")
    (english / "annotation" / "text.json").rename(english / "text.json")
    # Its download script makes a folder a video, with the video's title as the file's name.
    for clip, id in zip(clips, ("-aaaaaaaaa1", "aaaaaaaaaa2", "aaaaaaaaaa3", "ccccccccc_2", "cccccccccc1"), strict=False):
        (english / "videos" / id).mkdir(parents=True)
        shutil.copy(clip, english / "videos" / id / "How I bake bread.mp4")
    # A second test video that is offensive, so that no class has one video only.
    (english / "videos" / "bbbbbbbbbb2.mp4").write_bytes(clips[-1].read_bytes())
    assert run("multihateclip", english, "--out", out, "--with-text", "--quick") == 0
    assert by_id(out)["-aaaaaaaaa1"].uri == str(english / "videos" / "-aaaaaaaaa1" / "How I bake bread.mp4")
    assert by_id(out)["cccccccccc1"].context == "Title: A bus goes by, doesn't it?"


def test_a_video_that_comes_later_moves_no_other_to_another_split(clips: list[Path], videos: Path, tmp_path: Path) -> None:
    names = [f"smartbench_000{number}.mp4" for number in (1, 2, 3, 5, 6, 7)]
    place(clips, videos, *names[:-1])
    before, after = tmp_path / "before" / "m.parquet", tmp_path / "after" / "m.parquet"
    assert run("smarthome", FIXTURES / "smarthome", "--videos", videos, "--out", before, "--quick") == 0
    place(clips, videos, *names)
    assert run("smarthome", FIXTURES / "smarthome", "--videos", videos, "--out", after, "--quick") == 0
    splits = {id: example.split for id, example in by_id(after).items()}
    assert {id: example.split for id, example in by_id(before).items()}.items() < splits.items()


def test_a_published_split_may_name_private_and_missing_videos(clips: list[Path], videos: Path, tmp_path: Path) -> None:
    place(clips, videos, *(f"smartbench_000{number}.mp4" for number in (1, 2, 3, 5, 6)))
    split_file, out = tmp_path / "split.json", tmp_path / "m.parquet"
    ids = [f"smartbench_000{number}" for number in range(1, 8)]
    split_file.write_text(json.dumps({"train": ids[:4], "test": ids[4:]}))
    assert run("smarthome", FIXTURES / "smarthome", "--videos", videos, "--out", out, "--split-file", split_file, "--quick") == 0
    assert {id[-1]: example.split for id, example in by_id(out).items()} == {
        "1": "train", "2": "train", "3": "train", "5": "test", "6": "test",
    }  # fmt: skip
    assert {reason: len(gone) for reason, gone in read_card(out)["left_out"].items()} == {"private": 1 + 1, "missing": 1}
    split_file.write_text(json.dumps({"train": ids[:4], "test": ["smartbench_9999"]}))
    assert run("smarthome", FIXTURES / "smarthome", "--videos", videos, "--out", out, "--split-file", split_file, "--quick") == 2


def test_multihateclip_keeps_its_split_and_a_reupload_in_two_splits_stays_in_test(
    clips: list[Path], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = (
        "-aaaaaaaaa1",
        "aaaaaaaaaa2",
        "aaaaaaaaaa3",
        "aaaaaaaaaa4",
        "bbbbbbbbbb1",
        "bbbbbbbbbb2",
        "cccccccccc1",
        "ccccccccc_2",
        "cccccccccc3",
    )
    place(clips, videos, *(f"{id}.mp4" for id in ids))
    shutil.copy(videos / "cccccccccc1.mp4", videos / "aaaaaaaaaa2.mp4")
    out = tmp_path / "m.parquet"
    assert run("multihateclip", FIXTURES / "multihateclip", "--videos", videos, "--out", out, "--with-text") == 0
    found = by_id(out)
    assert "aaaaaaaaaa2" not in found
    assert found["-aaaaaaaaa1"].context == "Title: How I bake bread\nTranscript: First the flour."
    assert found["-aaaaaaaaa1"].label == "normal", "text.json has a chatbot's label, hateful"
    assert [example.split for example in found.values()] == ["train"] * 3 + ["validation"] * 2 + ["test"] * 3
    assert [video["id"] for video in read_card(out)["left_out"]["in two splits"]] == ["ccccccccc_2", "aaaaaaaaaa2"]
    assert "Title and transcript go before the prompt of 4 of 9 videos" in capsys.readouterr().out
    assert run("multihateclip", FIXTURES / "multihateclip", "--videos", videos, "--out", out) == 0
    assert {example.context for example in by_id(out).values()} == {None}


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "task.yaml"
    path.write_text(
        "name: doors\nlabels: [normal, abnormal]\npersona: watchman\nquestion: Is it normal or abnormal?\n"
        "dimensions: [{heading: Subjects, describe: who}]\n"
    )
    return path


def llava_file(path: Path, answers: dict[str, str]) -> Path:
    records = [
        {"id": id, "video": f"{id}.mp4", "conversations": [{"from": "human", "value": "<video>\n?"}, {"from": "gpt", "value": answer}]}
        for id, answer in answers.items()
    ]
    path.write_text(json.dumps(records))
    return path


def test_llava_files_become_a_manifest_and_a_card(
    clips: list[Path], videos: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(clips, videos, *(f"{id}.mp4" for id in "abcd"))
    (videos / "d.mp4").write_bytes(b"no video")
    train = llava_file(tmp_path / "train.json", {"a": "Normal.", "b": "abnormal", "gone": "normal"})
    test = llava_file(tmp_path / "test.json", {"c": "normal", "d": "Abnormal"})
    out = tmp_path / "m.parquet"
    command = ["llava", f"train={train}", f"test={test}", "--videos", videos, "--out", out]
    assert run(*command, "--task", task_file) == 0
    assert {id: (example.label, example.split) for id, example in by_id(out).items()} == {
        "a": ("normal", "train"), "b": ("abnormal", "train"), "c": ("normal", "test"), "d": ("abnormal", "test"),
    }  # fmt: skip
    card = read_card(out)
    assert [video["id"] for video in card["left_out"]["missing"]] == ["gone"]
    assert card["unusable"]["d"].startswith("video_format: ")
    assert "1 cannot be decoded: d" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(*command)
    assert "--task" in capsys.readouterr().err
    assert run("llava", train, f"test={test}", "--videos", videos, "--out", out, "--task", task_file) == 2
    assert "write SPLIT=FILE for all of them or for none" in capsys.readouterr().err
    assert run("llava", f"tset={test}", "--videos", videos, "--out", out, "--task", task_file) == 2
    assert "did you mean 'test'?" in capsys.readouterr().err


def test_own_data_with_the_same_bytes_in_two_splits_is_refused_and_the_card_is_there(
    clips: list[Path], videos: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(clips, videos, *(f"{id}.mp4" for id in "abcd"))
    shutil.copy(videos / "a.mp4", videos / "c.mp4")
    files = {"train": {"a": "normal", "b": "abnormal"}, "test": {"c": "normal", "d": "abnormal"}}
    paths = [f"{split}={llava_file(tmp_path / f'{split}.json', answers)}" for split, answers in files.items()]
    out = tmp_path / "m.parquet"
    assert run("llava", *paths, "--videos", videos, "--out", out, "--task", task_file) == 2
    assert "error[leak]: 'a', 'c': the same bytes in train and test" in capsys.readouterr().err
    assert not out.exists()
    assert read_card(out)["manifest"] is None


def test_the_data_of_a_run_is_imported_without_the_videos_that_have_no_file(
    clips: list[Path], videos: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place(clips, videos, *(f"{number}.mp4" for number in range(8)))
    table = "id,uri,label,split\n" + "".join(
        f"v{number},{number}.mp4,{'normal' if number % 2 else 'abnormal'},{'train' if number < 6 else 'test'}\n" for number in range(9)
    )
    (videos / "labels.csv").write_text(table)
    config, out = tmp_path / "run.yaml", tmp_path / "m.parquet"
    config.write_text(f"name: doors\ntask: {task_file}\ndata: {{annotations: {videos}/labels.csv}}\nmodel: {{path: ./none}}\n")
    assert run("--config", config, "--out", out) == 0
    assert list(by_id(out)) == [f"v{number}" for number in range(8)]
    assert [video["id"] for video in read_card(out)["left_out"]["missing"]] == ["v8"]
    assert "a run reads it as data.manifest" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "import needs --config and --out, or a format that needs no run file"),
        (["smarthome", "{tmp}/none", "--videos", "{tmp}", "--out", "{tmp}/m.parquet"], "holds neither Annotation_vad_1203.csv"),
        (["smarthome", FIXTURES / "smarthome", "--videos", "{tmp}/none", "--out", "{tmp}/m.parquet"], "none: no such folder"),
        (["smarthome", FIXTURES / "smarthome", "--videos", "{tmp}", "--out", "{tmp}/m", "--task", "{tmp}/none.yaml"], "none.yaml: no such"),
        (["multihateclip", "{tmp}", "--out", "{tmp}/m.parquet"], "train.tsv: cannot be opened"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    arguments: list[str | Path], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(str(argument).format(tmp=tmp_path) for argument in arguments)) == 2
    assert says in capsys.readouterr().err
