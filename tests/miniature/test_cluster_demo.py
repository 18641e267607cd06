"""Whether the demo on a cluster came to the demo's numbers. The demo itself is `make cluster-demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from miniature import cluster_demo


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cluster_demo, "ROOT", tmp_path)
    monkeypatch.setattr(cluster_demo, "RUN", tmp_path / "runs/cluster/miniature")
    return tmp_path / "runs"


def write(folder: Path, accuracy: float, **more: object) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"systems": {"rb-ft": {"accuracy": accuracy}}} | more))


def test_the_same_numbers_are_the_same_whatever_the_time_they_took(runs: Path) -> None:
    write(runs / "cluster/miniature", 0.75, wall_s={"train": 100})
    assert "nothing to compare with" in cluster_demo.compare()
    write(runs / "miniature", 0.75, wall_s={"train": 50})
    assert cluster_demo.compare() == "the same numbers as `make demo`"


def test_other_numbers_fail_the_demo(runs: Path) -> None:
    write(runs / "cluster/miniature", 0.75)
    write(runs / "miniature", 0.5)
    with pytest.raises(SystemExit, match="not the numbers of `make demo`"):
        cluster_demo.compare()
