"""`make cluster-demo`: the demo on a cluster of this machine's own, two of whose nodes are killed while it runs.

    a head that takes no work, and two workers, with token authentication        ray start …
    the demo's pipeline, submitted                                                 rbft submit pipeline …
    a worker is killed while it writes rationales, and one in stage 1; each time another joins
    the same numbers as `make demo`, if that has run here

The world is the demo's; the run goes to runs/cluster/miniature. Every command is printed as it could be typed.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from miniature.demo import ROOT, SEED, SIZES, WORLD
from miniature.write import drawn_world
from rbft.run_status import Step, read_status

RUN = ROOT / "runs/cluster/miniature"
BIN = Path(sys.executable).parent
PATIENCE_S = 1800.0


class Cluster:
    """A head and workers, each a `ray start --block`; `close` ends them, by process id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # a job's bare `python` is the first on the head's PATH
        port, dashboard_port = _free_port(), _free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
        ports = [f"--port={port}", f"--dashboard-port={dashboard_port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder / 'ray'}"]
        self._head = self._start("--head", "--num-cpus=0", *ports)
        self.workers: list[subprocess.Popen[bytes]] = []

    def wait_until_ready(self) -> None:
        request = urllib.request.Request(f"{self.dashboard}/api/authentication_mode")

        def answers() -> bool:
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return True
            except (urllib.error.URLError, OSError):
                return False

        _wait_for(answers, f"the head: see {self._folder}/ray.log")

    def add_worker(self) -> None:
        self.workers.append(self._start(f"--address={self.address}", "--num-cpus=2"))

    def kill_worker_with(self, actor: str) -> None:
        """SIGKILL to a worker below which an actor of that class runs, and all of it; raises `SystemExit` if there is none."""
        for worker in self.workers:
            tree = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
            if any(actor in " ".join(_words(process)) for process in tree):
                print(f"$ kill -9 {' '.join(str(process.pid) for process in tree)}    # the worker with {actor}", flush=True)
                _signal(tree, signal.SIGSTOP)  # so that none sees another go, as when a machine goes
                _signal(tree, signal.SIGKILL)
                worker.wait()
                self.workers.remove(worker)
                return
        raise SystemExit(f"no worker runs {actor}")

    def close(self) -> None:
        for process in (*self.workers, self._head):
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
            _signal(tree[:1], signal.SIGTERM)
            _, alive = psutil.wait_procs(tree, timeout=20)
            _signal(alive, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        words = ["ray", "start", *arguments, f"--object-store-memory={256 << 20}", "--block"]
        print(f"$ {shlex.join(words)} &", flush=True)
        with (self._folder / "ray.log").open("ab") as log:
            words[0] = str(BIN / "ray")
            return subprocess.Popen(words, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@contextmanager
def local_cluster() -> Iterator[Cluster]:
    """A short folder: Ray's sockets lie in it, and their paths may have 107 bytes."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="rbft")))
    try:
        cluster.wait_until_ready()
        for _ in range(2):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.close()


def main() -> None:
    drawn_world(WORLD, SEED, SIZES)
    shutil.rmtree(RUN, ignore_errors=True)  # of an earlier demo, in which nothing would be left to be killed in
    with local_cluster() as cluster:
        words = ["rbft", "submit", "pipeline", "--config", "configs/miniature.yaml", "--set", "output_dir=runs/cluster"]
        words += ["--address", cluster.dashboard]
        print(f"$ {shlex.join(words)}", flush=True)
        job = subprocess.Popen([str(BIN / "rbft"), *words[1:]], cwd=ROOT, env=cluster.environment)
        try:
            _wait_for(lambda: (_step("rationales").done or 0) > 0, "rationales", job)
            cluster.kill_worker_with("EngineActor")
            cluster.add_worker()
            _wait_for(lambda: _step("train rb-ft/rationale").checkpoint is not None, "a checkpoint of stage 1", job)
            cluster.kill_worker_with("RayTrainWorker")
            cluster.add_worker()
            code = job.wait()
        finally:
            job.kill()
    if code:
        raise SystemExit(code)
    print(compare())


def compare() -> str:
    """Whether the numbers are the demo's."""
    found, expected = ((run / "summary.json") for run in (RUN, ROOT / "runs/miniature"))
    if not expected.is_file():
        return "`make demo` has not run here, so that there is nothing to compare with"
    ours, theirs = (json.loads(path.read_text())["systems"] for path in (found, expected))
    if ours != theirs:
        raise SystemExit(f"not the numbers of `make demo`: {found} and {expected} differ")
    return "the same numbers as `make demo`"


def _step(name: str) -> Step:
    """Of the run; one with nothing done while there is no run."""
    if not (RUN / "run.json").is_file():
        return Step(name, "to do")
    return next(step for step in read_status(str(RUN)).steps if step.name == name)


def _wait_for(condition: Callable[[], bool], what: str, job: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline or (job is not None and job.poll() is not None):
            raise SystemExit(f"did not get as far as {what}")
        time.sleep(0.2)


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
