"""A job that waits says what for."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs import waiting
from ray_jobs.training_workers import following
from ray_jobs.waiting import Waiting, resources
from rbft.config import TrainingConfig


def test_silence_is_said_with_what_is_missing_and_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "FIRST_SAID_S", 0.1)
    told = ""
    with Waiting("generate", "2 actors of 8 CPU, 1 GPU", lambda: {"CPU": 4.0, "memory": 1e9}):
        deadline = time.monotonic() + 30
        while told.count("no news") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
            told += capsys.readouterr().out
    assert told.count("no news for 0.1 s; needed are 2 actors of 8 CPU, 1 GPU; free on the cluster: 4 CPU") == 1
    silences = [float(line.split("no news for ")[1].split(" s;")[0]) for line in told.splitlines()]
    assert all(later >= 1.9 * earlier for earlier, later in pairwise(silences))


def test_training_that_finds_no_room_says_what_its_workers_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "FIRST_SAID_S", 0.1)
    training = TrainingConfig(num_workers=2, num_cpus=1, num_gpus=0, resources={"on_demand": 1})
    spec = SimpleNamespace(name="rb-ft/classify", folder=str(tmp_path), home=str(tmp_path), training=training)
    planned: Any = SimpleNamespace(run=SimpleNamespace(label="a"), spec=spec)
    told, deadline = "", time.monotonic() + 30
    with following([planned]):
        while "no news" not in told and time.monotonic() < deadline:
            time.sleep(0.02)
            told += capsys.readouterr().out
    assert "train: no news for 0.1 s; needed are 2 workers of 1 CPU, 1 on_demand; free on the cluster: 0 CPU, 0 on_demand" in told


def test_progress_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(waiting, "FIRST_SAID_S", 30.0)
    with Waiting("generate", "an actor", dict) as each:
        each.progressed()
    assert capsys.readouterr().out == ""


def test_resources_are_those_that_are_scheduled() -> None:
    assert resources({"CPU": 0.5, "GPU": 1.0, "node:10.0.0.1": 1.0}) == "0.5 CPU, 1 GPU" and resources({}) == "0 CPU"
    assert resources({"CPU": 8.0}, {"spot": 1}) == "8 CPU, 0 spot"
