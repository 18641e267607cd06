"""A Ray cluster of this machine's own: a head and nodes, each a `ray start --block` with a token. Nothing else on the machine is touched;
what is started is ended by its process id."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

BIN = Path(sys.executable).parent
READY_S = 300.0
STORE_BYTES = 128 << 20


class LocalCluster:
    """A context manager. The head's ports stay the same, so that it can die and come again.

    `folder` must be short: Ray's sockets lie in it, and their paths may have 107 bytes.
    """

    def __init__(
        self, folder: Path, head_cpus: int = 0, more: Mapping[str, str] | None = None, tell: Callable[[str], object] = lambda _: None
    ) -> None:
        """`more`: of the environment of all that is started; `tell`: is given each command, as it could be typed."""
        self._folder, self._head_cpus, self._tell = folder, head_cpus, tell
        self.token_file = folder / "token"
        self.token_file.write_text(secrets.token_hex(32))
        self.token_file.chmod(0o600)
        port, dashboard_port = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
        self.joins = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file), "RAY_ADDRESS": self.address}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | self.joins
        self.environment |= {"RAY_USAGE_STATS_ENABLED": "0", **(more or {})}
        # A job's bare `python` is the first on the head's PATH.
        self.environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self._head: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._num_started = 0

    def __enter__(self) -> Self:
        try:
            self.start_head()
        except BaseException:  # Ctrl-C too: the head is in a session of its own
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in filter(None, (*self.nodes, self._head)):
            end(process)

    def start_head(self) -> None:
        """Returns when its dashboard answers; raises `TimeoutError` if it does not."""
        port, dashboard_port = self.address.rpartition(":")[2], self.dashboard.rpartition(":")[2]
        # By this note and the nodes that still look for it, `ray start` would take the dead head on this machine for a live one.
        (self._folder / "ray/ray_current_cluster").unlink(missing_ok=True)
        where = [f"--port={port}", f"--dashboard-port={dashboard_port}", "--node-ip-address=127.0.0.1"]
        self._head = self._start("--head", f"--num-cpus={self._head_cpus}", *where, temp_dir=self._folder / "ray")
        self._wait_until(self._answers, self._head)

    @property
    def _log(self) -> Path:
        """What the process that was started last prints."""
        return self._folder / f"ray-{self._num_started}.log"

    def kill_head(self) -> None:
        assert self._head is not None
        kill(self._head)

    def add_node(self, num_cpus: int, resources: str = "{}") -> subprocess.Popen[bytes]:
        """Returns when it has joined: two that join at once may want the same ports and names of sockets. Raises `TimeoutError`."""
        # A folder of its own, as on a machine of its own: a node that is new to a job unpacks its working directory, and in a folder that
        # all share it would remove the one in which the others, and the driver, are at work.
        temp_dir = self._folder / f"node-{self._num_started}"
        node = self._start(f"--address={self.address}", f"--num-cpus={num_cpus}", f"--resources={resources}", temp_dir=temp_dir)
        self.nodes.append(node)
        self._wait_until(lambda: b"Ray runtime started" in self._log.read_bytes(), node)
        return node

    def node_with(self, actor: str) -> subprocess.Popen[bytes] | None:
        """A node below which an actor of that class runs."""
        return next((node for node in self.nodes if any(actor in _title(process) for process in tree(node))), None)

    def kill_node(self, node: subprocess.Popen[bytes]) -> None:
        self.nodes.remove(node)
        kill(node)

    def _start(self, *arguments: str, temp_dir: Path) -> subprocess.Popen[bytes]:
        # Its usual port may be that of another Ray on this machine, and a head without this agent takes no jobs.
        agent = f"--dashboard-agent-listen-port={free_port()}"
        words = ["ray", "start", *arguments, f"--temp-dir={temp_dir}", agent, f"--object-store-memory={STORE_BYTES}", "--block"]
        self._tell(f"{shlex.join(words)} &")
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        self._num_started += 1
        with self._log.open("wb") as log:
            words[0] = str(BIN / "ray")
            return subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def _wait_until(self, is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_S
        while not is_ready():
            if time.monotonic() > deadline or process.poll() is not None:
                raise TimeoutError(f"ray start has not come up:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.dashboard}/api/authentication_mode", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process and all below it; empty if it has ended."""
    try:
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)] if process.poll() is None else []
    except psutil.NoSuchProcess:
        return []


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and all below it, as when a machine goes: stopped first, so that none sees another go."""
    processes = tree(process)
    _signal(processes, signal.SIGSTOP)
    _signal(processes, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(processes, timeout=30)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which `ray start --block` passes on; what is left after a while is killed."""
    processes = tree(process)
    _signal(processes[:1], signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=20)
    _signal(alive, signal.SIGKILL)


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
