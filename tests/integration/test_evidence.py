"""The experiment itself, on worlds of a few clips: every arm, the curve, the titled task; and that arms differ only in what they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from miniature.protocol import FIRST, protocol_file
from rbft.artifacts import read_marker
from tests.integration.conftest import Jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

WORLDS = (901, 902)
SIZES = {"train": 24, "validation": 2, "test": 16}


def run_evidence(jobs: Jobs, protocol: Path, out: Path) -> str:
    command = [sys.executable, "-m", "miniature.evidence", "--protocol", str(protocol), "--out", str(out)]
    done = subprocess.run(command, cwd=jobs.repository, env=os.environ | jobs.environment, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def experiment(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(protocol file, result folder, output) of the frozen protocol on tiny worlds."""
    folder = tmp_path_factory.mktemp("evidence")
    small = {"worlds": list(WORLDS), "title_world": 905, "sizes": SIZES, "label_counts": [8]}  # 905 has hateful clips in both splits
    protocol = folder / "protocol.yaml"
    protocol.write_text(yaml.safe_dump(yaml.safe_load(protocol_file(FIRST).read_text()) | small))
    return protocol, folder / "out", run_evidence(jobs, protocol, folder / "out")


def lineage(run: Path, system: str, stage: str) -> dict[str, Any]:
    """What the run's files say a stage was made of."""
    facts = json.loads((run / "run.json").read_text())
    return dict(read_marker(f"{facts['artifacts'][f'train/{system}/{stage}']}/final")["lineage"])


def test_every_system_has_numbers_and_the_page_begins_with_the_verdict(experiment: tuple[Path, Path, str]) -> None:
    _, out, output = experiment
    numbers = json.loads((out / "evidence.json").read_text())
    table = ["zero-shot", "direct-sft-1", "direct-sft-2", "rb-ft", "rb-ft-shuffled", "rb-ft-human"]
    assert set(table) | {"rb-ft-unlabelled@8", "direct-sft-2@8"} <= set(numbers["systems"])
    assert set(numbers["titled_systems"]) == set(table) and "recall hateful" in numbers["titled_systems"]["rb-ft"]
    assert len(numbers["systems"]["rb-ft"]["balanced_accuracy"]["repetitions"]) == len(WORLDS)
    page = (out / "evidence.md").read_text()
    assert page.split("\n\n")[1].startswith(f"**{numbers['verdict']}**") and numbers["verdict"] in output
    assert page.count("iniature world") >= 7  # every table says where its numbers are from
    assert (out / "evidence-1-label-curve.svg").read_text().startswith("<svg") and (out / "evidence-1-losses.svg").is_file()
    report = (out / "report.html").read_text()
    assert numbers["verdict"] in report and report.count("<svg") > 5 and "FIGURE" not in report


def test_systems_differ_only_in_what_they_should(experiment: tuple[Path, Path, str]) -> None:
    _, out, _ = experiment
    for seed in WORLDS:
        run = out / f"world-{seed}"
        stages = {
            (system, stage): lineage(run, system, stage)
            for system in ("rb-ft", "rb-ft-shuffled", "rb-ft-human")
            for stage in ("rationale", "classify")
        }
        stages |= {(system, "classify"): lineage(run, system, "classify") for system in ("direct-sft-1", "direct-sft-2")}
        # The same clips, in the same order, with the same seed and settings, in every stage of every system.
        for name in ("videos", "seed", "num_items"):
            assert len({found[name] for found in stages.values()}) == 1, name
        assert {found["num_items"] for found in stages.values()} == {SIZES["train"]}
        assert len({found["answers"] for (_, stage), found in stages.items() if stage == "classify"}) == 1
        assert len({found["answers"] for (_, stage), found in stages.items() if stage == "rationale"}) == 3
        assert {system: found["epochs"] for (system, stage), found in stages.items() if stage == "classify"} == {
            "direct-sft-1": 1,
            "direct-sft-2": 2,
            "rb-ft": 1,
            "rb-ft-shuffled": 1,
            "rb-ft-human": 1,
        }
        same = [{key: value for key, value in found["optimiser"].items() if not key.startswith("lr_")} for found in stages.values()]
        assert all(each == same[0] for each in same)
        # With fewer labels too: the same few clips for all.
        few = [lineage(run, f"{system}@8", "classify") for system in ("direct-sft-1", "direct-sft-2", "rb-ft", "rb-ft-unlabelled")]
        assert len({(found["videos"], found["answers"]) for found in few}) == 1 and few[0]["num_items"] == 8
        assert lineage(run, "rb-ft-unlabelled@8", "rationale") == stages["rb-ft", "rationale"]


def test_given_again_it_does_nothing_twice(jobs: Jobs, experiment: tuple[Path, Path, str]) -> None:
    protocol, out, _ = experiment
    kept = [*out.rglob("*.safetensors"), *out.rglob("predictions-*.parquet"), *out.rglob("*.mp4")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    output = run_evidence(jobs, protocol, out)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert "starting" not in output and "drawing" not in output
