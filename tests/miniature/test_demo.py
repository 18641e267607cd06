"""What the demo adds to a run's summary."""

import json
from pathlib import Path

import pytest

from miniature import demo
from miniature.world import sample_world
from miniature.write import write_world


def test_the_slots_of_true_captions_are_all_right_and_of_empty_ones_all_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = sample_world(seed=6, sizes={"train": 4})
    write_world(tmp_path, clips)
    monkeypatch.setattr(demo, "WORLD", tmp_path)
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"name": "kept"}))

    demo.add_slots(summary, {clip.plan.id: clip.human_text for clip in clips})
    written = json.loads(summary.read_text())
    assert written["name"] == "kept" and written["base_slots"]["target"]["overall"] == 1.0
    assert written["base_slots"]["general"]["overall"] >= 0.9

    demo.add_slots(summary, {clip.plan.id: "" for clip in clips})
    assert json.loads(summary.read_text())["base_slots"]["target"]["overall"] == 0.0
