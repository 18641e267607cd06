"""One Ray cluster, one small world and one finished run for all integration tests: starts are most of their time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from miniature.world import sample_world
from miniature.write import write_world
from serve.problems import MEDIA_TYPE

NUM_TRAIN, NUM_TEST = 48, 24


@dataclass(frozen=True)
class RayCluster:
    """A running head node with token authentication."""

    address: str
    dashboard: str
    environment: dict[str, str]
    """What a process needs to join it."""
    pid: int
    """Of its head."""
    metrics_port: int
    """Where its node answers Prometheus."""


@pytest.fixture(scope="session")
def miniature_model(repository: Path) -> Path:
    return repository / "miniature" / "model"


@pytest.fixture(scope="session")
def ray_cluster(short_tmp: Path) -> Iterator[RayCluster]:
    """`ray start --head` with a token of its own; ended by pid. This process is given the environment to join it."""
    token = short_tmp / "token"
    token.write_text("0123456789abcdef" * 4)
    port, dashboard_port, metrics_port = free_port(), free_port(), free_port()
    joins = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"),
        *(
            f"--dashboard-port={dashboard_port}",
            f"--metrics-export-port={metrics_port}",
            f"--dashboard-agent-listen-port={free_port()}",  # else that of every Ray on the machine, and a second one takes no jobs
            "--num-cpus=6",
            f"--object-store-memory={512 << 20}",
            f"--temp-dir={short_tmp / 'ray'}",
        ),
    ]
    log = (short_tmp / "ray-start.log").open("wb")
    head = subprocess.Popen(command, env=os.environ | joins, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    cluster = RayCluster(
        f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}", joins | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, head.pid, metrics_port
    )
    try:
        wait_until(lambda: answers(f"{cluster.dashboard}/api/version", token.read_text()), 120, f"ray start: see {log.name}")
        os.environ.update(cluster.environment)
        yield cluster
    finally:
        for name in cluster.environment:
            os.environ.pop(name, None)
        end_process_tree(head.pid)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a small target world."""
    folder = tmp_path_factory.mktemp("world")
    return write_world(folder, sample_world(seed=77, sizes={"train": NUM_TRAIN, "test": NUM_TEST}))


@dataclass(frozen=True)
class Jobs:
    """Starts jobs on the small world, as a user would."""

    repository: Path
    output_dir: Path
    manifest: Path
    environment: dict[str, str]

    def command(self, script: str, name: str, *overrides: str, flags: Sequence[str] = ()) -> list[str]:
        settings = [
            *(f"name={name}", f"output_dir={self.output_dir}", f"data.manifest={self.manifest}", "engine.rows_per_block=8"),
            *("evaluation.num_report_samples=4", f"evaluation.report_attention={name == 'whole'}", "training.checkpoint_every_steps=1"),
            *overrides,
        ]
        arguments = [argument for setting in settings for argument in ("--set", setting)]
        return [sys.executable, f"ray_jobs/{script}.py", "--config", "configs/miniature.yaml", *arguments, *flags]

    def start(self, script: str, name: str, *overrides: str, flags: Sequence[str] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(script, name, *overrides, flags=flags),
            cwd=self.repository,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, name: str, *overrides: str, flags: Sequence[str] = (), expect: int = 0) -> str:
        """What the job printed; fails the test if it exits with another code than `expect`."""
        job = self.start(script, name, *overrides, flags=flags)
        output, _ = job.communicate(timeout=900)
        assert job.returncode == expect, output
        return output

    def run_dir(self, name: str) -> Path:
        return self.output_dir / name


@pytest.fixture(scope="session")
def jobs(repository: Path, world: Path, ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(repository, tmp_path_factory.mktemp("runs"), world, ray_cluster.environment)


@pytest.fixture(scope="session")
def finished_run(jobs: Jobs) -> Path:
    """The folder of an uninterrupted pipeline run with all four systems."""
    jobs.run("pipeline", "whole")
    return jobs.run_dir("whole")


TRAINING = ('evaluation.systems=["direct-sft-1"]', "training.global_batch_size=4", "training.micro_batch_size=1")
"""Twelve steps of one stage: time enough to be stopped in."""


@pytest.fixture(scope="session")
def finished_training(jobs: Jobs) -> Path:
    """The folder of a run whose stage (`TRAINING`) nobody stopped."""
    jobs.run("train", "train-whole", *TRAINING)
    return jobs.run_dir("train-whole")


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str], timeout_s: float = 300) -> None:
    """Wait until `condition()` holds; fails the test with the job's output if it ends before that."""

    def holds_or_ended() -> bool:
        return condition() or job.poll() is not None

    wait_until(holds_or_ended, timeout_s, "the job did not get that far")
    if job.poll() is not None and not condition():
        raise AssertionError("".join(stream.read() for stream in (job.stdout, job.stderr) if stream) or "the job ended")


def end_process_tree(pid: int) -> None:
    """End the process and all below it, by pid."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    tree = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(tree, timeout=20)
    for left in alive:
        left.kill()
    psutil.wait_procs(alive, timeout=10)


def wait_until(condition: Callable[[], bool], timeout_s: float, message: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:.0f} s: {message}")
        time.sleep(0.05)


def answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def check_refusals(responses: Sequence[httpx.Response]) -> None:
    """Whoever is to come again is told so by a problem with its code, of the service or of Serve's proxy."""
    for response in responses:
        if response.status_code == 503:
            assert response.headers["content-type"] == MEDIA_TYPE, response.text
            assert response.json()["code"] in ("overloaded", "engine_gone"), response.text
            assert int(response.headers["retry-after"]) > 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
