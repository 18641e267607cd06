"""Training under Ray that is told to stop, and goes on: the weights are those of a run that nobody stopped."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from rbft import artifacts
from tests.integration.conftest import TRAINING, Jobs, RayCluster, wait_for
from tests.integration.training_runs import lineage, log_lines, num_logged, stage_folder, weights

pytestmark = pytest.mark.timeout(900)


def train_workers(ray_cluster: RayCluster) -> list[psutil.Process]:
    return [each for each in psutil.Process(ray_cluster.pid).children(recursive=True) if "RayTrainWorker" in " ".join(_cmdline(each))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_job_that_is_ended_by_sigterm_saves_and_goes_on_where_it_was(jobs: Jobs, finished_training: Path) -> None:
    """The second submission asks for up to four workers where there is room for three: it takes two, which divide the batch. Of two
    processors each, so that sums are taken in another order."""
    run = jobs.run_dir("train-stopped")
    job = jobs.start("train", "train-stopped", *TRAINING, "training.checkpoint_every_steps=1000")
    wait_for(lambda: num_logged(run) >= 2, job)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 2 and "error[training_stopped]: direct-sft-1/classify: stopped after step" in output, output
    last_step = log_lines(run)[-1]["step"]
    (saved,) = (stage_folder(run) / "checkpoints").iterdir()
    assert artifacts.is_complete(str(saved)) and saved.name == f"step-{last_step:08d}" and last_step < 12
    elastic = ("training.num_workers=4", "training.min_workers=1", "training.num_cpus=2")
    jobs.run("train", "train-stopped", *TRAINING, *elastic)
    assert lineage(run)["num_workers"] == 2
    lines, expected = log_lines(run), log_lines(finished_training)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], abs=1e-3)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_ends_with_the_same_weights(jobs: Jobs, finished_training: Path) -> None:
    run = jobs.run_dir("train-interrupted")
    job = jobs.start("train", "train-interrupted", *TRAINING, "training.checkpoint_every_steps=1000")
    wait_for(lambda: num_logged(run) >= 2, job)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 130 and "stopped after step" in output and "(Ctrl-C)" in output, output
    assert list(stage_folder(run).glob("checkpoints/*/COMPLETE.json"))
    jobs.run("train", "train-interrupted", *TRAINING)
    assert weights(run) == weights(finished_training)


@pytest.mark.slow
def test_a_worker_that_gets_a_sigterm_saves_and_the_job_goes_on_by_itself(
    jobs: Jobs, ray_cluster: RayCluster, finished_training: Path
) -> None:
    run = jobs.run_dir("train-worker-stopped")
    job = jobs.start("train", "train-worker-stopped", *TRAINING, "training.checkpoint_every_steps=1000")
    wait_for(lambda: num_logged(run) >= 2, job)
    first, second = train_workers(ray_cluster)
    second.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0 and "(SIGTERM to a worker)" in output, output
    assert not first.is_running() and weights(run) == weights(finished_training)


def test_a_stage_that_would_fail_again_is_not_tried_again(jobs: Jobs) -> None:
    """With such a rate the weights are no numbers after the first step."""
    run = jobs.run_dir("train-diverged")
    output = jobs.run("train", "train-diverged", *TRAINING, "training.classify.lr_language=1e38", expect=2)
    assert "error[job]: training ended: the loss is NaN or infinite at step 2, with these videos in the batch (rank 0: " in output
    assert output.count("starting 2 DeepSpeed workers") == 1 and num_logged(run) == 1
    assert [path.name for path in (stage_folder(run) / "checkpoints").iterdir()] == ["step-00000001"]
