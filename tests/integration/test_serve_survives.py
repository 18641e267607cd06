"""The service with a real engine while parts of it are killed under load: 503 that says when to come again, no wrong answer, then right
ones again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.conftest import check_refusals
from tests.integration.test_serve import served, without_cluster
from tests.serve.samples import write_clip

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

REFUSED_WITHIN_S = 3.0
"""From a kill to the first refusal, and from a question to its refusal."""
SLACK_S = 30.0
"""Beside an engine's start, until answers are right again."""


@dataclass
class Served:
    """A service that runs, and a video to ask about."""

    process: psutil.Process
    url: str
    video: bytes
    start_s: float
    """From its start until it was ready, which is an engine's start and a little more."""


@dataclass
class Load:
    """Four clients that ask about the same video all the time."""

    url: str
    video: bytes
    is_over: threading.Event = field(default_factory=threading.Event)
    responses: list[tuple[float, httpx.Response]] = field(default_factory=list)
    """When the answer came (`time.monotonic`), and the answer."""

    def ask(self) -> httpx.Response:
        response = httpx.post(f"{self.url}/v1/classify", files={"video": self.video}, timeout=300)
        self.responses.append((time.monotonic(), response))
        return response

    @contextmanager
    def running(self) -> Iterator[None]:
        self.is_over.clear()
        with ThreadPoolExecutor(4) as threads:
            clients = [threads.submit(self._run) for _ in range(4)]
            try:
                yield
            finally:
                self.is_over.set()
            for client in clients:
                client.result()

    def _run(self) -> None:
        while not self.is_over.is_set():
            if self.ask().status_code != 200:
                time.sleep(0.2)


@pytest.fixture(scope="module")
def service(repository: Path, miniature_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    video = write_clip(tmp_path_factory.mktemp("clips") / "square.mp4", seconds=8).read_bytes()
    started = time.monotonic()
    with served(repository, miniature_model, without_cluster()) as (process, client):
        yield Served(psutil.Process(process.pid), client.url, video, time.monotonic() - started)


def kill_one(service: psutil.Process, mark: str) -> None:
    next(each for each in service.children(recursive=True) if mark in " ".join(each.cmdline())).send_signal(signal.SIGKILL)


@pytest.mark.parametrize("mark", ["VLLM::EngineCore", "ray::ServeReplica:rbft:classifier"], ids=["engine", "replica"])
def test_a_killed_part_costs_503_for_a_while_and_no_wrong_answer(
    service: Served, mark: str, record_property: Callable[[str, object], None]
) -> None:
    load = Load(service.url, service.video)
    right = load.ask().json()["probabilities"]
    with load.running():
        _wait(lambda: len(load.responses) > 8)
        kill_one(service.process, mark)
        killed = time.monotonic()
        _wait(lambda: any(response.status_code == 503 for _, response in load.responses))
        _wait(lambda: [response.status_code for _, response in load.responses[-8:]] == [200] * 8, service.start_s + SLACK_S + 60)
    for _, response in load.responses:
        assert response.status_code in (200, 503), response.text
        if response.status_code == 200:
            assert response.json()["probabilities"] == pytest.approx(right, abs=2e-3)
    check_refusals([response for _, response in load.responses])
    refused = [(at - killed, response) for at, response in load.responses if response.status_code != 200]
    slowest_s = max(response.elapsed.total_seconds() for _, response in refused)
    right_again_s = min(at - killed for at, response in load.responses if response.status_code == 200 and at - killed > refused[-1][0])
    record_property(
        "seconds from the kill to the first 503, the last 503 and the next answer", [refused[0][0], refused[-1][0], right_again_s]
    )
    record_property("slowest refusal (s)", slowest_s)
    record_property("start of the service (s)", service.start_s)
    assert refused[0][0] < REFUSED_WITHIN_S and slowest_s < REFUSED_WITHIN_S
    assert right_again_s < service.start_s + SLACK_S


def test_a_killed_decoder_costs_nobody_an_answer(service: Served) -> None:
    load = Load(service.url, service.video)
    right = load.ask().json()["probabilities"]
    for _ in range(5):
        before = len(load.responses)
        with load.running():  # which ends before the next kill, so that no video loses both of its decoders
            _wait(lambda before=before: len(load.responses) > before + 4)  # type: ignore[misc]
            kill_one(service.process, "rbft.video.child")
            _wait(lambda before=before: len(load.responses) > before + 12)  # type: ignore[misc]
    assert [response.status_code for _, response in load.responses] == [200] * len(load.responses)
    for _, response in load.responses:
        assert response.json()["probabilities"] == pytest.approx(right, abs=2e-3)


def _wait(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
