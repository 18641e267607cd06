"""Whether the demo on a cluster came to the demo's numbers. The demo itself is `make cluster-demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from miniature import cluster_demo
from rbft.run_status import Step


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cluster_demo, "ROOT", tmp_path)
    monkeypatch.setattr(cluster_demo, "RUN", tmp_path / "runs/cluster/miniature")
    return tmp_path / "runs"


def write(folder: Path, accuracy: float, brier: float = 0.1, **more: object) -> None:
    metrics = folder / "evaluation/rb-ft/0123"
    metrics.mkdir(parents=True)
    (metrics / "metrics.json").write_text(json.dumps({"brier": brier, "fingerprint": str(folder)}))
    (folder / "run.json").write_text(json.dumps({"artifacts": {"evaluation/rb-ft": "/elsewhere/run/evaluation/rb-ft/0123"}}))
    (folder / "summary.json").write_text(json.dumps({"systems": {"rb-ft": {"accuracy": accuracy}}} | more))


def test_the_same_numbers_are_the_same_whatever_the_time_they_took(runs: Path) -> None:
    write(runs / "cluster/miniature", 0.75, wall_s={"train": 100})
    with pytest.raises(SystemExit, match="run `make demo` first"):
        cluster_demo.compare()
    write(runs / "miniature", 0.75, wall_s={"train": 50})
    assert cluster_demo.compare().startswith("the same numbers as `make demo`: systems, ")


@pytest.mark.parametrize(
    ("demo", "where"),
    [
        ({"accuracy": 0.5}, "in /systems/rb-ft/accuracy: 0.75 and 0.5"),
        ({"accuracy": 0.75, "brier": 0.2}, "in /metrics of rb-ft/brier: 0.1 and 0.2"),
        ({"accuracy": 0.75, "mcnemar_p": {"rb-ft - direct-sft-1": 0.5}}, "in /mcnemar_p: "),
    ],
)
def test_other_numbers_fail_the_demo(demo: dict[str, Any], where: str, runs: Path) -> None:
    write(runs / "cluster/miniature", 0.75)
    write(runs / "miniature", **demo)
    with pytest.raises(SystemExit, match=f"not the numbers of `make demo`: .* differ {where}"):
        cluster_demo.compare()


def test_a_worker_is_killed_in_the_middle_of_a_step_or_the_demo_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    states = iter(("to do", "begun", "done"))
    monkeypatch.setattr(cluster_demo, "_step", lambda name: Step(name, next(states), checkpoint=1))  # type: ignore[arg-type]
    try:
        cluster_demo._wait_for("train rb-ft/rationale", lambda step: True, job)
        with pytest.raises(SystemExit, match="train rb-ft/rationale is done: no worker could be killed in the middle of it"):
            cluster_demo._wait_for("train rb-ft/rationale", lambda step: True, job)
    finally:
        job.communicate(b"\n")
