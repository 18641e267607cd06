"""The benchmark of the video models at tiny size: it runs, also where the official code is not there, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.video_models import cases, main


def test_without_the_official_code_it_times_the_rest_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size", "tiny", "--rounds", "1", "--checkouts", str(tmp_path), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert "the official code is not there" in capsys.readouterr().out
    assert found["ratio_vs_official"].keys() == {case.name for case in cases("tiny")}
    for name, by_what in found["seconds"].items():
        assert found["ratio_vs_official"][name] == {"forward": None, "training step": None}
        assert all(seconds["ours"] > 0 and seconds["VideoMAE"] > 0 for seconds in by_what.values())
        assert all(ratio > 0 for ratio in found["ratio_vs_videomae"][name].values())
