"""Training under Ray that is told to stop, and goes on: the weights are those of a run that nobody stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from rbft import artifacts
from tests.integration.conftest import Jobs, RayCluster, wait_for

pytestmark = pytest.mark.timeout(900)

SETTINGS = ('evaluation.systems=["direct-sft-1"]', "training.global_batch_size=4", "training.micro_batch_size=2")
"""Twelve steps of one stage, so that there is time to be stopped in."""


def stage_folder(run: Path) -> Path:
    (folder,) = run.glob("train/direct-sft-1/classify/*")
    return folder


def num_logged(run: Path) -> int:
    logs = list(run.glob("train/direct-sft-1/classify/*/log.jsonl"))
    return len(logs[0].read_bytes().splitlines()) if logs else 0


def weights(run: Path) -> bytes:
    return (stage_folder(run) / "final" / "model.safetensors").read_bytes()


def lineage(run: Path) -> dict[str, Any]:
    return dict(artifacts.read_marker(str(stage_folder(run) / "final"))["lineage"])


def train_workers(ray_cluster: RayCluster) -> list[psutil.Process]:
    return [each for each in psutil.Process(ray_cluster.pid).children(recursive=True) if "RayTrainWorker" in " ".join(_cmdline(each))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def uninterrupted(jobs: Jobs) -> Path:
    jobs.run("train", "train-whole", *SETTINGS)
    return jobs.run_dir("train-whole")


def test_a_job_that_is_ended_by_sigterm_saves_and_goes_on_where_it_was(jobs: Jobs, uninterrupted: Path) -> None:
    """The second submission asks for up to four workers where there is room for three: it takes two, which divide the batch."""
    run = jobs.run_dir("train-stopped")
    job = jobs.start("train", "train-stopped", *SETTINGS, "training.checkpoint_every_steps=1000")
    wait_for(lambda: num_logged(run) >= 2, job)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 2 and "error[training_stopped]: direct-sft-1/classify: stopped after step" in output, output
    steps = [json.loads(line)["step"] for line in (stage_folder(run) / "log.jsonl").read_text().splitlines()]
    (saved,) = (stage_folder(run) / "checkpoints").iterdir()
    assert artifacts.is_complete(str(saved)) and saved.name == f"step-{steps[-1]:08d}" and steps[-1] < 12
    elastic = ("training.num_workers=4", "training.micro_batch_size=1", "training.min_workers=1", "training.num_cpus=2")
    jobs.run("train", "train-stopped", *SETTINGS, *elastic)
    assert lineage(run)["num_workers"] == 2
    assert lineage(run)["num_items"] == lineage(uninterrupted)["num_items"]
    assert [json.loads(line)["step"] for line in (stage_folder(run) / "log.jsonl").read_text().splitlines()] == list(range(1, 13))


def test_ctrl_c_saves_and_the_same_command_ends_with_the_same_weights(jobs: Jobs, uninterrupted: Path) -> None:
    run = jobs.run_dir("train-interrupted")
    job = jobs.start("train", "train-interrupted", *SETTINGS, "training.checkpoint_every_steps=1000")
    wait_for(lambda: num_logged(run) >= 2, job)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 130 and "stopped after step" in output and "(Ctrl-C)" in output, output
    assert list(stage_folder(run).glob("checkpoints/*/COMPLETE.json"))
    jobs.run("train", "train-interrupted", *SETTINGS)
    assert weights(run) == weights(uninterrupted)


def test_a_worker_that_gets_a_sigterm_saves_and_the_job_goes_on_by_itself(jobs: Jobs, ray_cluster: RayCluster, uninterrupted: Path) -> None:
    run = jobs.run_dir("train-worker-stopped")
    job = jobs.start("train", "train-worker-stopped", *SETTINGS, "training.checkpoint_every_steps=1000")
    wait_for(lambda: num_logged(run) >= 2, job)
    first, second = train_workers(ray_cluster)
    second.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0 and "(SIGTERM to a worker)" in output, output
    assert not first.is_running() and weights(run) == weights(uninterrupted)
