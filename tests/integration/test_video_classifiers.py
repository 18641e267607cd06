"""A tiny VideoMAE from random weights as a system of a run: trained under Ray Train, killed, gone on with, and asked about every clip."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.baselines.classifiers import make_tiny_classifier
from tests.integration.conftest import NUM_TEST, Jobs, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    model = make_tiny_classifier(tmp_path_factory.mktemp("classifier"), "videomae")
    classifier = {
        **{"name": "videomae", "path": str(model), "epochs": 4, "learning_rate": 1e-3, "precision": "fp32"},
        **{"global_batch_size": 8, "micro_batch_size": 4},
    }
    return ("evaluation.systems=[]", f"evaluation.video_classifiers={json.dumps([classifier])}")


def only(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def predicted(run: Path) -> list[dict[str, object]]:
    return list(pq.read_table(only(run / "evaluation/videomae") / "predictions-00000.parquet").to_pylist())


def weights(run: Path) -> bytes:
    return (only(run / "train/videomae/classify") / "final" / "model.safetensors").read_bytes()


def test_a_video_classifier_is_a_system_of_a_run_and_survives_a_kill(jobs: Jobs, settings: tuple[str, ...]) -> None:
    output = jobs.run("pipeline", "specialised", *settings)
    run = jobs.run_dir("specialised")
    table = predicted(run)
    assert len(table) == len({row["id"] for row in table}) == NUM_TEST and all(row["error_code"] is None for row in table)
    assert set(json.loads((run / "summary.json").read_text())["systems"]) == {"videomae"}
    report = (run / "report.html").read_text()
    assert "videomae" in report and report.count("Training loss by step") == 1
    lines = [json.loads(line) for line in (only(run / "train/videomae/classify") / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert "evaluate videomae: 24 clips in 2 workers" in output
    assert "starting" not in jobs.run("pipeline", "specialised", *settings)

    killed = jobs.run_dir("specialised-killed")
    job = jobs.start("pipeline", "specialised-killed", *settings)
    wait_for(lambda: bool(list(killed.glob("train/videomae/classify/*/checkpoints/step-*/COMPLETE.json"))), job)
    job.send_signal(signal.SIGKILL)
    job.wait()
    jobs.run("pipeline", "specialised-killed", *settings)
    assert weights(killed) == weights(run)
    assert predicted(killed) == table
