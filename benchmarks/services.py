"""Services as processes of their own: ours, and vLLM's server with the same model and the arguments of our engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rbft.config import RunConfig
from rbft.engines.vllm import engine_arguments
from rbft.models.chat import ChatAdapter
from serve.__main__ import free_port

ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 400.0
_CPU_BACKEND = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_NUM_THREADS": "1",
}
"""The same for both. One thread is what Ray gives to an actor of one core, and the quicker for the miniature in either."""
PEER_MODEL = "peer"
"""The name under which vLLM's server has the model."""


@dataclass(frozen=True)
class Service:
    """A service that answers."""

    url: str
    process: psutil.Process

    def memory_bytes(self) -> dict[str, int]:
        """What the service does -> bytes of its processes, each page once as far as the kernel says so (PSS)."""
        held: Counter[str] = Counter()
        for part, each in self._processes():
            held[part] += _proportional(each)
        return held

    def cpu_s(self) -> dict[str, float]:
        """What the service does -> seconds of CPU that its processes have had."""
        spent: dict[str, float] = {}
        for part, each in self._processes():
            try:
                times = each.cpu_times()
            except psutil.Error:  # it has ended meanwhile
                continue
            spent[part] = spent.get(part, 0.0) + times.user + times.system
            if part == "replica":  # its decoders that have been replaced
                spent["decoders"] = spent.get("decoders", 0.0) + times.children_user + times.children_system
        return spent

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """Each process, with what it does."""
        for each in (self.process, *self.process.children(recursive=True)):
            try:
                line = " ".join(each.cmdline())
            except psutil.Error:  # it has ended meanwhile
                continue
            yield next((part for mark, part in _PARTS.items() if mark in line), "rest of Ray" if "ray" in line else "server"), each


_PARTS = {
    "VLLM::EngineCor": "engine core",
    "VLLM::Worker": "engine worker",
    "ray::ServeReplica": "replica",
    "ray::ProxyActor": "proxy",
    "rbft.video.child": "decoders",
}
"""What stands in a process's command line, and what it is then."""


@contextmanager
def ours(config_file: Path, model: str, settings: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[Service]:
    """`python -m serve`, once it is ready."""
    port = free_port("127.0.0.1", 0)
    command = [sys.executable, "-m", "serve", "--config", str(config_file), "--model", model, "--port", str(port)]
    command += [argument for setting in settings for argument in ("--set", setting)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    with _started(command, kept | _CPU_BACKEND | (environment or {}), log, f"http://127.0.0.1:{port}", "/readyz") as service:
        yield service


@contextmanager
def vllm_server(config: RunConfig, model: str, log: Path) -> Iterator[Service]:
    """`vllm serve`, once it is ready: our engine's arguments, and videos read at the task's rate of frames."""
    port = free_port("127.0.0.1", 0)
    model_config = config.model.model_copy(update={"path": model})
    arguments = engine_arguments(model_config, config.engine, ChatAdapter(model, config.video.spec()), config.seed)
    arguments |= {"served_model_name": PEER_MODEL, "host": "127.0.0.1", "port": port, "disable_uvicorn_access_log": True}
    arguments["media_io_kwargs"] = {"video": {"fps": config.video.fps, "num_frames": -1}}
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={_plain(value)}") for name, value in arguments.items()]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    with _started(command, dict(os.environ) | _CPU_BACKEND, log, f"http://127.0.0.1:{port}", "/health") as service:
        yield service


@contextmanager
def _started(command: Sequence[str], environment: dict[str, str], log: Path, url: str, health: str) -> Iterator[Service]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(url + health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command[:4])} did not start: {log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield Service(url, psutil.Process(process.pid))
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, alive = psutil.wait_procs(tree, timeout=10)
    for left in alive:
        left.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended meanwhile
        return 0
