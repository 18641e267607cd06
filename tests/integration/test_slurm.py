"""`deploy/slurm/rbft.sbatch` with programs that stand in for srun and scontrol, and a real Ray on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SRUN = f"""#!{sys.executable}
# Runs the command here: there is one node. Options before it are those that the script gives. Told to end, it kills the command and all
# below it, without a word to them, as srun does with its step.
import contextlib, signal, subprocess, sys
import psutil

words = sys.argv[1:]
while words[0].startswith("--"):
    words = words[1 if words[0] == "--overlap" else 2:]
step = subprocess.Popen(words)


def kill(*_):
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(step.pid)
        for process in [*top.children(recursive=True), top]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


signal.signal(signal.SIGTERM, kill)
code = step.wait()
sys.exit(code if code >= 0 else 128 - code)
"""
SCONTROL = """#!/bin/bash
[[ $1 == show && $2 == hostnames ]] && echo "$3"
"""
JOB = """
import os, ray
ray.init(log_to_driver=False)
worker = ray.get(ray.remote(num_cpus=1)(lambda: "a worker").remote())
print("job on", worker, len(ray.nodes()), "node(s)", os.environ["RAY_AUTH_MODE"], flush=True)
token = os.environ["RAY_AUTH_TOKEN_PATH"]
print("token", token, oct(os.stat(token).st_mode)[-3:], os.environ["SRUN_CPUS_PER_TASK"], flush=True)
"""
WAITING_JOB = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(7)))
print("working", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of one test; its path is short, as Ray makes sockets below it."""
    made = Path(tempfile.mkdtemp(prefix="slurm"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _job(folder: Path, repository: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    job = _start(folder, repository, code)
    try:
        yield job
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


def _start(folder: Path, repository: Path, code: str) -> subprocess.Popen[str]:
    programs, checkout = folder / "programs", folder / "checkout"
    programs.mkdir()
    checkout.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        job_id = probe.getsockname()[1]  # the script's port follows from it
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(checkout),
        "HOME": str(folder / "home"),
        "SLURM_JOB_ID": str(job_id),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_TMPDIR": str(folder),
        "PYTHONPATH": str(repository),
    }
    command = ["bash", str(repository / "deploy" / "slurm" / "rbft.sbatch"), "python", "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _processes_below(folder: Path) -> list[str]:
    """Command lines of processes that name the folder of this test's Ray."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder / "ray") in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_a_job_runs_on_the_ray_that_is_started_for_it_and_nothing_is_left(folder: Path, repository: Path) -> None:
    with _job(folder, repository, JOB) as job:
        output, _ = job.communicate(timeout=240)
    assert job.returncode == 0
    assert "job on a worker 1 node(s) token" in output
    (told,) = [line.split() for line in output.splitlines() if line.startswith("token ")]
    assert Path(told[1]).parent == folder / "home" / ".rbft-slurm" and told[2:] == ["600", "1"]
    assert not list((folder / "home").rglob("token-*")) and not list((folder / "checkout").iterdir())
    deadline = time.monotonic() + 60
    while _processes_below(folder):
        assert time.monotonic() < deadline, _processes_below(folder)
        time.sleep(0.5)


@pytest.mark.slow
def test_a_job_that_is_told_that_its_time_is_up_may_save_and_its_exit_code_is_told(folder: Path, repository: Path) -> None:
    with _job(folder, repository, WAITING_JOB) as job:
        assert job.stdout is not None
        said = ""
        while "working" not in said:
            line = job.stdout.readline()
            assert line, said
            said += line
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate(timeout=120)
    assert "saved" in said
    assert job.returncode == 7
