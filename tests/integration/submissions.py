"""What tests of submitted jobs have in common: a teacher that answers when it is let, a person who types `rbft …`, and a head that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.integration.conftest import Jobs, answers, end_process_tree, free_port, wait_until
from tests.openai_server import Server

RAY = str(Path(sys.executable).with_name("ray"))


class Teacher(Server):
    """Writes rationales as soon as it may, the first `num_free` at once: no engine has to start, and a job lasts as long as it must."""

    def __init__(self, num_free: int = 0) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self._free = threading.Semaphore(num_free)
        self.on_request = self._hold

    def _hold(self) -> None:
        if not self._free.acquire(blocking=False):
            self.may_answer.wait(600)

    def close(self) -> None:
        self.may_answer.set()
        super().close()

    def setting(self) -> str:
        """What has a run ask it."""
        return f"teacher.server={{url: {self.url}, model: m, max_concurrency: 4}}"


class Person:
    """Types `rbft …` on a machine with nothing but the token's file."""

    def __init__(self, jobs: Jobs, dashboard: str, token_file: str) -> None:
        self._jobs, self._dashboard = jobs, dashboard
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment["RAY_AUTH_TOKEN_PATH"] = token_file

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rbft.cli", *words, "--address", self._dashboard],
            cwd=self._jobs.repository,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, expect: int = 0) -> tuple[str, str]:
        """What came on stdout and on stderr."""
        process = self.start(*words)
        out, err = process.communicate(timeout=900)
        assert process.returncode == expect, out + err
        return out, err

    def submission(self, verb: str, name: str, *overrides: str) -> Sequence[str]:
        return ("submit", verb, *self._jobs.command(verb, name, *overrides)[2:])


class Head:
    """`ray start --head` on ports that stay the same, so that it can die and come again. Nodes join it with `start_node`."""

    def __init__(self, folder: Path, token_file: Path, more: Mapping[str, str], num_cpus: int) -> None:
        self._folder, self._num_cpus = folder, num_cpus
        self._port, self._dashboard_port = free_port(), free_port()
        self.joins = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
        self._token, self._more = token_file.read_text(), dict(more)
        self.address, self.dashboard = f"127.0.0.1:{self._port}", f"http://127.0.0.1:{self._dashboard_port}"
        self._log = (folder / "ray.log").open("wb")
        self._head: subprocess.Popen[bytes] | None = None
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        ports = (f"--port={self._port}", f"--dashboard-port={self._dashboard_port}", "--node-ip-address=127.0.0.1")
        self._head = self._start("--head", *ports, f"--num-cpus={self._num_cpus}", f"--temp-dir={self._folder / 'ray'}")
        wait_until(lambda: answers(f"{self.dashboard}/api/version", self._token), 300, f"ray start: see {self._log.name}")

    def start_node(self, num_cpus: int, resources: str = "{}") -> subprocess.Popen[bytes]:
        node = self._start(f"--address={self.address}", f"--num-cpus={num_cpus}", f"--resources={resources}")
        self._nodes.append(node)
        return node

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [RAY, "start", "--block", *arguments, f"--object-store-memory={128 << 20}", "--disable-usage-stats"]
        return subprocess.Popen(
            command, env=os.environ | self.joins | self._more, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def kill(self) -> None:
        """SIGKILL to all of it at once, as when its machine goes."""
        assert self._head is not None
        kill_tree(self._head.pid)
        self._head.wait()

    def close(self) -> None:
        for process in (*self._nodes, self._head):
            if process is not None and process.poll() is None:
                end_process_tree(process.pid)
        self._log.close()


def kill_tree(pid: int) -> None:
    """SIGKILL to the process and all below it. They are stopped first, so that none sees another go."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for signal_ in (signal.SIGSTOP, signal.SIGKILL):
        for process in tree:
            try:
                process.send_signal(signal_)
            except psutil.NoSuchProcess:
                continue
    psutil.wait_procs(tree, timeout=30)
    time.sleep(0.1)
