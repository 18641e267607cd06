"""The `rbft` command, as a person runs it: verbs, exit codes, one line for an error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from miniature.write import encode_mp4
from rbft import cli
from rbft.data.manifest import read_manifest
from rbft.errors import LeakError

OWN_VERBS = (
    *("init", "validate", "import", "plan", "status", "review", "compare", "predictions", "export", "convert"),
    *("classify", "keys", "doctor"),
)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two classes of four videos, each with bytes of its own."""
    folder = tmp_path / "videos"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            shade = 20 * number + (10 if label == "cat" else 0)
            (folder / label / f"{number}.mp4").write_bytes(encode_mp4(np.full((4, 56, 56, 3), shade, dtype=np.uint8)))
    return folder


@pytest.fixture
def run_file(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["init", str(videos), "--out", str(tmp_path / "configs"), "--gpus", "0", "--yes"]) == 0
    capsys.readouterr()
    return tmp_path / "configs" / "videos.yaml"


def test_the_verbs_of_the_library_come_from_the_entry_points() -> None:
    assert "rbft.cli:register" in {entry_point.value for entry_point in entry_points(group=cli.GROUP)}
    parser, _ = cli.build_parser()
    text = parser.format_help()
    for verb in OWN_VERBS:
        assert re.search(rf"^    {verb}\s", text, re.MULTILINE)


def test_a_group_of_verbs_that_cannot_be_imported_does_not_take_the_others_along(tmp_path: Path) -> None:
    distribution = tmp_path / "broken-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[rbft.commands]\nbroken = no_such_module:register\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "rbft.cli", "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "the verbs of no_such_module:register are missing" in done.stderr
    assert "doctor" in done.stdout


def test_a_verb_added_by_an_entry_point_is_found(tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text(
        "def register(subparsers):\n    subparsers.add_parser('greet').set_defaults(handler=lambda arguments: print('hello') or 7)\n"
    )
    distribution = tmp_path / "more-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[rbft.commands]\nmore = more:register\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "rbft.cli", "greet"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "hello\n")


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run([Path(sys.executable).parent / "rbft", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "rbft")


def test_an_error_of_ours_is_one_line_on_stderr_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", str(tmp_path / "none.yaml")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"error[config]: {tmp_path}/none.yaml: no such file")


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise LeakError("first\n  second")

    assert cli.run(fail) == 2
    assert capsys.readouterr().err == "error[leak]: first second\n"


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)


def test_the_exit_code_is_the_handlers_and_0_for_none() -> None:
    assert [cli.run(lambda: None), cli.run(lambda: 0), cli.run(lambda: 1)] == [0, 0, 1]


def test_an_interrupt_ends_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "run.yaml"
    os.mkfifo(fifo)
    process = subprocess.Popen([sys.executable, "-m", "rbft.cli", "plan", "--config", str(fifo)], stderr=subprocess.PIPE, text=True)
    with fifo.open("w"):  # opens once the command is reading
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"


def test_output_into_a_closed_pipe_is_no_error(run_file: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rbft.cli", "plan", "--config", str(run_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert "BrokenPipe" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("argv", [[], ["no-such-verb"], ["plan"], ["plan", "--config"], ["init"]])
def test_a_command_line_that_is_none_ends_with_usage_and_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: rbft" in capsys.readouterr().err


def test_init_says_what_comes_next_and_does_not_overwrite(
    videos: Path, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", str(videos), "--out", str(tmp_path / "other"), "--name", "pets", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "8 videos, labels: cat, dog" in out
    assert f"rbft plan --config {tmp_path}/other/pets.yaml" in out
    assert cli.main(["init", str(videos), "--out", str(run_file.parent), "--yes"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_init_asks_for_what_is_not_given(videos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rbft.cli", "init", str(videos), "--out", str(tmp_path / "asked"), "--labels", "dog,cat"]
    done = subprocess.run(command, input="pets\nvet\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The model is asked as a … [video analyst]:" in done.stdout
    task = (tmp_path / "asked" / "tasks" / "pets.yaml").read_text()
    assert "persona: vet\n" in task
    assert "labels: [dog, cat]\n" in task


def test_plan_prints_the_plan_with_overrides(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", str(run_file), "--set", "name=other", "--set", "training.num_workers=2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Plan of other (nothing has been started)")
    assert "2 workers x 2 x 4 accumulated" in out


def test_import_writes_a_manifest_with_splits_and_hashes(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "manifest.parquet"
    assert cli.main(["import", "--config", str(run_file), "--out", str(out)]) == 0
    examples = read_manifest(out)
    assert {(example.label, example.split) for example in examples} == {
        (label, split) for label in ("cat", "dog") for split in ("train", "test")
    }
    assert all(example.sha256 and Path(example.uri).is_file() for example in examples)
    # What was imported is a source like any other, and stays as it is.
    again = tmp_path / "again.parquet"
    overrides = ["--set", "data.folder=null", "--set", f"data.manifest={out}"]
    assert cli.main(["import", "--config", str(run_file), "--out", str(again), *overrides]) == 0
    assert read_manifest(again) == examples


def test_import_refuses_the_same_video_in_two_splits(
    run_file: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = (videos / "cat" / "0.mp4").read_bytes()
    for path in (videos / "cat").iterdir():
        path.write_bytes(same)
    out = tmp_path / "manifest.parquet"
    assert cli.main(["import", "--config", str(run_file), "--out", str(out)]) == 2
    assert "error[leak]: " in capsys.readouterr().err
    assert not out.exists()


def test_validate_reports_and_ends_with_1_where_something_is_wrong(
    run_file: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", "--config", str(run_file)]) == 0
    assert "8 videos, usable" in capsys.readouterr().out
    (videos / "cat" / "0.mp4").write_bytes(b"no video")
    assert cli.main(["validate", "--config", str(run_file)]) == 1
    out = capsys.readouterr().out
    assert "cat/0.mp4: video_format" in out
    assert "12.5% of the videos are missing or unusable, more than data.max_bad_fraction (5.0%)" in out
    assert cli.main(["validate", "--config", str(run_file), "--quick"]) == 0
    assert cli.main(["validate", "--config", str(run_file), "--set", "data.max_bad_fraction=0.2"]) == 0


def test_a_wrong_value_is_the_same_error_from_every_verb(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["plan"], ["validate"], ["import", "--out", "x"]):
        assert cli.main([*verb, "--config", str(run_file), "--set", "sed=1"]) == 2
        assert "unknown key sed; did you mean seed?" in capsys.readouterr().err
