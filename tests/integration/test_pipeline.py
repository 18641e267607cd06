"""The main job on the real engines: what it leaves behind, a second submission, and every place it can be killed in."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from miniature.cluster_demo import differences
from rbft.artifacts import verify
from rbft.config import load_config
from rbft.models.load import read_card
from tests.integration.conftest import NUM_TEST, NUM_TRAIN, Jobs, RayCluster, wait_for

pytestmark = pytest.mark.timeout(1500)

SYSTEMS = ("zero-shot", "direct-sft-1", "direct-sft-2", "rb-ft")
TRAINED_STAGES = ("direct-sft-1/classify", "direct-sft-2/classify", "rb-ft/rationale", "rb-ft/classify")


def only(folder: Path) -> Path:
    """The one artifact in a folder of fingerprints."""
    (found,) = [path for path in folder.iterdir() if path.is_dir()]
    return found


def weights_sha256(run: Path, stage: str) -> str:
    return hashlib.sha256((only(run / "train" / stage) / "final" / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_a_summary_with_every_system_and_its_interval(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert set(summary["systems"]) == set(SYSTEMS)
    for system in summary["systems"].values():
        low, high = system["ci95"]
        assert 0 <= low <= system["accuracy"] <= high <= 1
        assert 0 <= system["macro_f1"] <= 1 and 0 <= system["balanced_accuracy"] <= 1
    assert {"generate", "train", "evaluate", "report"} <= set(summary["wall_s"])
    assert summary["peak_rss_bytes"] > 0 and summary["versions"]["ray"]


def test_every_training_video_has_one_rationale_with_its_sections(finished_run: Path) -> None:
    table = pq.read_table(only(finished_run / "rationales") / "rationales-00000.parquet").to_pylist()
    assert len(table) == len({row["id"] for row in table}) == NUM_TRAIN
    assert all(row["error_code"] is None and row["text"] and row["num_tokens"] > 4 for row in table)
    assert all(json.loads(row["provenance"])["label_in_prompt"] is False for row in table)
    assert sum("Subjects" in json.loads(row["sections"]) for row in table) > 0.9 * NUM_TRAIN


def test_every_test_video_has_one_prediction_a_system(finished_run: Path) -> None:
    for system in SYSTEMS:
        table = pq.read_table(only(finished_run / "evaluation" / system) / "predictions-00000.parquet").to_pylist()
        assert len(table) == len({row["id"] for row in table}) == NUM_TEST
        assert all(sum(json.loads(row["probabilities"]).values()) == pytest.approx(1) for row in table)


def test_a_finished_model_folder_is_whole_and_knows_its_task(finished_run: Path, repository: Path) -> None:
    config = load_config(repository / "configs/miniature.yaml")
    for stage in TRAINED_STAGES:
        final = only(finished_run / "train" / stage) / "final"
        verify(final)
        task, spec, lineage = read_card(final)
        assert task == config.task and spec == config.video.spec() and f"{lineage['system']}/{lineage['stage']}" == stage


def test_training_lowers_the_loss_and_logs_both_rates_at_five_to_one(finished_run: Path) -> None:
    for stage in TRAINED_STAGES:
        lines = [json.loads(line) for line in (only(finished_run / "train" / stage) / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, lines[-1]["num_steps"] + 1))
        assert all(line["lr_language"] == pytest.approx(5 * line["lr_vision"]) for line in lines)
    assert (only(finished_run / "train" / "rb-ft/rationale") / "tensorboard").is_dir()


def test_the_report_shows_every_system_and_some_clips(finished_run: Path) -> None:
    report = (finished_run / "report.html").read_text()
    assert all(title in report for title in ("Zero-shot", "Direct-SFT (1 epoch)", "Direct-SFT (2 epochs)", "RB-FT"))
    assert report.count("data:image/jpeg") >= 8
    assert "Where RB-FT looks in it" in report and "No rationale was made" not in report and "No attention is shown" not in report
    for system in SYSTEMS:
        assert f"{only(finished_run / 'evaluation' / system).name}/predictions-00000.parquet" in report
    assert report.count("Training loss by step") == len(TRAINED_STAGES)


def test_submitting_again_does_nothing_twice(jobs: Jobs, finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    output = jobs.run("pipeline", "whole")
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")} == before
    assert "starting" not in output


def test_without_rb_ft_the_zero_shot_system_is_evaluated_alone(jobs: Jobs) -> None:
    jobs.run("pipeline", "alone", 'evaluation.systems=["zero-shot"]')
    assert set(json.loads((jobs.run_dir("alone") / "summary.json").read_text())["systems"]) == {"zero-shot"}


@pytest.mark.slow
def test_killed_while_generating_and_in_each_stage_it_ends_as_if_it_had_not_been(jobs: Jobs, finished_run: Path) -> None:
    """SIGKILL of the driver in the middle of generation and of every training stage, each time submitted again."""
    run = jobs.run_dir("killed")

    def parts() -> int:
        return len(list(run.glob("rationales/*/parts/*.parquet")))

    def checkpoint_of(stage: str) -> Callable[[], bool]:
        return lambda: bool(list(run.glob(f"train/{stage}/*/checkpoints/step-*/COMPLETE.json")))

    moments: list[Callable[[], bool]] = [lambda: parts() > 0, *(checkpoint_of(stage) for stage in TRAINED_STAGES)]
    for moment in moments:
        job = jobs.start("pipeline", "killed")
        wait_for(moment, job)
        job.send_signal(signal.SIGKILL)
        job.wait()
    output = jobs.run("pipeline", "killed")
    assert "RB-FT" in output

    rationales = [pq.read_table(only(folder / "rationales") / "rationales-00000.parquet") for folder in (finished_run, run)]
    ids = [table["id"].to_pylist() for table in rationales]
    assert ids[0] == ids[1] and len(set(ids[1])) == NUM_TRAIN
    assert rationales[0]["text"].to_pylist() == rationales[1]["text"].to_pylist()
    for stage in TRAINED_STAGES:
        assert weights_sha256(run, stage) == weights_sha256(finished_run, stage)
    summaries = [json.loads((folder / "summary.json").read_text())["systems"] for folder in (finished_run, run)]
    assert differences(*summaries) == []  # batches form as clips come, and rounding is theirs


def test_a_job_submitted_to_the_cluster_with_its_token_ends_well(jobs: Jobs, ray_cluster: RayCluster) -> None:
    """`ray job submit … -- python ray_jobs/pipeline.py`, on a cluster that wants a token; everything in one go, two systems."""
    entry = jobs.command("pipeline", "submitted", 'evaluation.systems=["zero-shot","rb-ft"]')
    ray = str(Path(sys.executable).with_name("ray"))
    submit = [ray, "job", "submit", "--address", ray_cluster.dashboard, "--working-dir", ".", "--", "python", *entry[1:]]
    environment = {key: value for key, value in jobs.environment.items() if key != "RAY_ADDRESS"}

    def try_once() -> subprocess.CompletedProcess[str]:
        return subprocess.run(submit, cwd=jobs.repository, env=os.environ | environment, capture_output=True, text=True, timeout=600)

    done = try_once()
    for attempt in range(4):
        if "No available agent" not in done.stdout + done.stderr:  # Right after a head starts its job agent is not there yet.
            break
        time.sleep(2 * (attempt + 1))
        done = try_once()
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads((jobs.run_dir("submitted") / "summary.json").read_text())["systems"]) == {"zero-shot", "rb-ft"}


def test_without_the_token_the_cluster_refuses(jobs: Jobs, ray_cluster: RayCluster) -> None:
    ray = str(Path(sys.executable).with_name("ray"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    submit = [ray, "job", "submit", "--address", ray_cluster.dashboard, "--", "python", "-c", "print('in')"]
    done = subprocess.run(submit, cwd=jobs.repository, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "in\n" not in done.stdout
