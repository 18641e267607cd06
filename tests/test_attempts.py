"""Notes on what was in an engine: who is a suspect, and who is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbft import attempts


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "rationales")


def test_videos_that_were_in_an_engine_when_it_died_are_suspects_also_for_the_next_job(folder: str) -> None:
    assert attempts.begin(folder, "block", ["a", "b"], "first") == attempts.Note()
    attempts.blame(folder, "block", ["b", "a"], "first")
    attempts.begin(folder, "block", ["c"], "first")
    assert attempts.suspects(folder) == {"a", "b"}
    assert attempts.begin(folder, "block", ["a", "b"], "second").is_suspect


def test_looking_changes_nothing(folder: str) -> None:
    """A block that waits for its turn while engines die with others in them is no more suspect for that."""
    attempts.begin(folder, "block", ["a"], "job")
    for _ in range(3):
        assert attempts.look(folder, "block", ["a"], "job").attempts == 1
        assert not attempts.look(folder, "block", ["a"], "job").is_suspect
    attempts.blame(folder, "block", ["a"], "job")
    assert attempts.look(folder, "block", ["a"], "another").is_suspect


def test_a_job_that_was_ended_says_nothing_about_its_videos(folder: str) -> None:
    for job in ("first", "second", "third"):
        assert not attempts.begin(folder, "block", ["a"], job).is_suspect
    assert attempts.suspects(folder) == set()


def test_a_process_that_goes_is_chance_once_and_suspicious_twice(folder: str) -> None:
    seen = [attempts.begin(folder, "block", ["a"], "job").is_suspect for _ in range(3)]
    assert seen == [False, False, True]
    assert attempts.suspects(folder) == {"a"}


def test_a_video_alone_in_an_engine_is_remembered_by_every_job(folder: str) -> None:
    assert attempts.begin(folder, "alone", ["a"], "first").attempts == 0
    assert attempts.begin(folder, "alone", ["a"], "second").attempts == 1
    assert attempts.suspects(folder) == set()  # its block says that


def test_progress_starts_the_count_again_and_suspects_stay_suspects(folder: str) -> None:
    for _ in range(4):
        attempts.begin(folder, "block", ["a", "b"], "job")
    attempts.progressed(folder, "block", ["a", "b"], "job")
    again = attempts.begin(folder, "block", ["a", "b"], "job")
    assert again.attempts == 1 and again.is_suspect


def test_what_ended_leaves_no_note(folder: str) -> None:
    attempts.begin(folder, "block", ["a"], "job")
    attempts.end(folder, "block", ["a"])
    attempts.end(folder, "block", ["never begun"])
    attempts.begin(folder, "block", ["b"], "job")
    attempts.forget(folder)
    assert not list(Path(folder).rglob("*.json"))
