"""What a job says of how far it is."""

from __future__ import annotations

import json

import pytest

from ray_jobs.progress import Progress, say
from rbft import log_fields


def test_the_rate_is_that_of_the_work_and_not_of_the_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A minute of starting engines, then ten videos a second."""
    now = [1000.0]
    monkeypatch.setattr("ray_jobs.progress.time.monotonic", lambda: now[0])
    said = Progress("generate", "videos", 1000)
    now[0] += 60
    said.add(10)
    for _ in range(9):
        now[0] += 1
        said.add(10, num_errors=1)
    lines = [line.split("generate: ")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("10/1000 videos, 0.2/s") and lines[1] == "60/1000 videos, 10.0/s, 1 min 34 s left (5 errors)"


def test_the_end_is_always_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = Progress("evaluate", "clips", 3)
    for _ in range(3):
        said.add(1)
    assert "evaluate: 3/3 clips" in capsys.readouterr().out.splitlines()[-1]


def test_lines_are_json_where_rays_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_LOGGING_CONFIG_ENCODING", "JSON")
    monkeypatch.setattr(log_fields, "_FIELDS", {"run": "mine"})
    say('generate: "half" done')
    told = json.loads(capsys.readouterr().out)
    assert (told["message"], told["levelname"], told["run"]) == ('generate: "half" done', "INFO", "mine")
    assert told["elapsed_s"] >= 0 and told["asctime"].endswith("+00:00")
