"""The service with a real engine while parts of it are killed under load: 503 that says when to come again, no wrong answer, then right
ones again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.test_serve import served, without_cluster
from tests.serve.samples import write_clip

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


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

    def run(self) -> None:
        while not self.is_over.is_set():
            if self.ask().status_code != 200:
                time.sleep(0.2)


@pytest.fixture(scope="module")
def service(
    repository: Path, miniature_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[psutil.Process, str, bytes]]:
    """Its process, its address, and a video to ask about."""
    video = write_clip(tmp_path_factory.mktemp("clips") / "square.mp4", seconds=8).read_bytes()
    with served(repository, miniature_model, without_cluster()) as (process, client):
        yield psutil.Process(process.pid), client.url, video


def kill_one(service: psutil.Process, mark: str) -> None:
    next(each for each in service.children(recursive=True) if mark in " ".join(each.cmdline())).send_signal(signal.SIGKILL)


@pytest.mark.parametrize("mark", ["VLLM::EngineCore", "ray::ServeReplica:rbft:classifier"], ids=["engine", "replica"])
def test_a_killed_part_costs_503_for_a_while_and_no_wrong_answer(
    service: tuple[psutil.Process, str, bytes], mark: str, record_property: Callable[[str, object], None]
) -> None:
    process, url, video = service
    load = Load(url, video)
    right = load.ask().json()["probabilities"]
    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(load.run) for _ in range(4)]
        try:
            _wait(lambda: len(load.responses) > 8)
            kill_one(process, mark)
            killed = time.monotonic()
            _wait(lambda: any(response.status_code == 503 for _, response in load.responses))
            _wait(lambda: [response.status_code for _, response in load.responses[-8:]] == [200] * 8)
        finally:
            load.is_over.set()
        for client in clients:
            client.result()
    refused = [(at - killed, response) for at, response in load.responses if response.status_code != 200]
    record_property("seconds from the kill to the first and the last 503", [refused[0][0], refused[-1][0]])
    record_property("slowest refusal (s)", max(response.elapsed.total_seconds() for _, response in refused))
    for _, response in load.responses:
        assert response.status_code in (200, 503), response.text
        if response.status_code == 200:
            assert response.json()["probabilities"] == pytest.approx(right, abs=2e-3)
        else:
            assert int(response.headers["retry-after"]) > 0


def test_a_killed_decoder_costs_its_own_videos_and_no_others(service: tuple[psutil.Process, str, bytes]) -> None:
    process, url, video = service
    load = Load(url, video)
    right = load.ask().json()["probabilities"]
    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(load.run) for _ in range(4)]
        try:
            for _ in range(5):
                kill_one(process, "rbft.video.child")
                before = len(load.responses)
                _wait(lambda before=before: len(load.responses) > before + 8)  # type: ignore[misc]
        finally:
            load.is_over.set()
        for client in clients:
            client.result()
    for _, response in load.responses:
        if response.status_code == 200:
            assert response.json()["probabilities"] == pytest.approx(right, abs=2e-3)
        else:
            assert (response.status_code, response.json()["code"]) == (422, "decoder_crash")
    assert load.ask().status_code == 200


def _wait(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
