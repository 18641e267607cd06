"""What `/metrics` tells: read as Prometheus reads it, and held against what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rbft.errors import EngineGoneError, VideoDecodeError
from rbft.keys import add_key
from serve.metrics import Metrics
from tests.serve.scripted import VERSION, ScriptedClassifier, client_of

CLIP = {"video": ("secret-name.mp4", b"some bytes")}


class Scrape:
    """What was read."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200 and response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.families = list(text_string_to_metric_families(response.text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, /, **labels: str) -> float | None:
        """The one sample of that name and those labels; None if there is none."""
        found = [sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()]
        assert len(found) <= 1
        return found[0] if found else None

    def values(self, label: str) -> set[str]:
        return {sample.labels[label] for sample in self.samples if label in sample.labels}


async def scrape(http: httpx.AsyncClient) -> Scrape:
    return Scrape(await http.get("/metrics"))


def after(asked: Iterable[tuple[str, str, dict[str, Any]]], classifier: ScriptedClassifier | None = None, **config: Any) -> Scrape:
    """What is told after these requests (method, path, options)."""

    async def scenario() -> Scrape:
        async with client_of(classifier or ScriptedClassifier(), **config) as http:
            for method, path, options in asked:
                await http.request(method, path, **options)
            return await scrape(http)

    return asyncio.run(scenario())


def num_requests(found: Scrape, route: str, status: int, method: str = "POST") -> float | None:
    return found.value("rbft_serve_requests_total", route=route, status=str(status), method=method)


def test_requests_are_counted_by_route_method_and_status_refusals_too() -> None:
    upload, too_large = {"files": CLIP}, {"files": {"video": b"x" * 5000}}
    asked = [("POST", "/v1/classify", upload)] * 3 + [("POST", "/v1/classify", too_large), ("POST", "/v1/rationale", {})]
    found = after([*asked, ("GET", "/v1/classify", {}), ("GET", "/v1/samples/7", {})], max_upload_bytes=4000)
    assert num_requests(found, "/v1/classify", 200) == 3
    assert num_requests(found, "/v1/classify", 413) == 1
    assert num_requests(found, "/v1/rationale", 415) == 1
    assert num_requests(found, "/v1/classify", 405, "GET") == 1
    assert num_requests(found, "/v1/samples/{number}", 404, "GET") == 1
    assert found.value("rbft_serve_request_seconds_count", route="/v1/classify") == 5
    total = found.value("rbft_serve_request_seconds_sum", route="/v1/classify")
    assert total is not None and 0 < total < 60


def test_whoever_has_no_key_is_told_nothing_and_counted(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.txt", "front-desk")
    with_key = {"Authorization": f"Bearer {key}"}

    async def scenario() -> tuple[list[int], str, Scrape]:
        async with client_of(ScriptedClassifier(), keys=str(tmp_path / "keys.txt")) as http:
            refused = [(await http.request(*asked)).status_code for asked in (("GET", "/metrics"), ("POST", "/v1/classify"))]
            await http.post("/v1/classify", files=CLIP, headers=with_key)
            response = await http.get("/metrics", headers=with_key)
            return refused, response.text, Scrape(response)

    refused, text, found = asyncio.run(scenario())
    assert refused == [401, 401]
    assert num_requests(found, "/metrics", 401, "GET") == num_requests(found, "/v1/classify", 401) == 1
    assert num_requests(found, "/v1/classify", 200) == 1
    assert "front-desk" not in text and key not in text and "secret" not in text


def test_phases_are_those_of_the_answers() -> None:
    async def scenario() -> tuple[dict[str, float], Scrape]:
        async with client_of(ScriptedClassifier()) as http:
            answer = (await http.post("/v1/classify", files=CLIP, data={"with_rationale": "true"})).json()
            await http.post("/v1/rationale", json={"video_id": answer["video_id"]})
            return answer["timing_s"], await scrape(http)

    timing_s, found = asyncio.run(scenario())
    assert found.values("phase") == set(timing_s) - {"total"} == {"receive", "queue", "decode", "engine", "rationale"}
    counts = {phase: found.value("rbft_serve_phase_seconds_count", phase=phase) for phase in found.values("phase")}
    assert counts == {"receive": 2, "queue": 2, "decode": 1, "engine": 2, "rationale": 1}
    assert found.value("rbft_serve_phase_seconds_sum", phase="decode") == pytest.approx(timing_s["decode"])


def test_a_batch_is_received_once_and_decodes_each_of_its_files() -> None:
    classifier = ScriptedClassifier()
    found = after([("POST", "/v1/classify/batch", {"files": [("video", (str(number), b"x")) for number in range(3)]})], classifier)
    assert num_requests(found, "/v1/classify/batch", 200) == 1
    assert found.value("rbft_serve_phase_seconds_count", phase="receive") == 1
    assert (
        found.value("rbft_serve_phase_seconds_count", phase="decode") == found.value("rbft_serve_phase_seconds_count", phase="engine") == 3
    )


def test_a_phase_that_fails_is_counted_and_those_that_never_came_are_not() -> None:
    async def cut_short() -> None:
        raise VideoDecodeError("cut short")

    found = after([("POST", "/v1/classify", {"files": CLIP})], ScriptedClassifier(cut_short))
    assert num_requests(found, "/v1/classify", 422) == 1
    assert found.value("rbft_serve_phase_seconds_count", phase="decode") == 1
    assert found.value("rbft_serve_phase_seconds_count", phase="engine") is None


def test_labels_stay_few_whatever_is_asked() -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = [("GET", f"/v1/none/{number}?query={number}", {}) for number in range(50)]
    asked += [("GET", f"/v1/samples/{number}", {}) for number in range(1, 50)]
    asked += [(f"METHOD{number}", "/v1/task", {"headers": {"X-Request-ID": f"made-up-{number}"}}) for number in range(50)]
    found = after(asked)
    assert {"none", "/v1/samples/{number}", "/v1/task"} == found.values("route")
    assert {"GET", "other"} == found.values("method")
    assert found.values("replica") == {"local"}
    assert len(found.samples) < 150


def test_every_sample_names_its_replica() -> None:
    metrics = Metrics("u1x9")
    metrics.request("/v1/classify", "POST", None, 0.1)
    metrics.phase("decode", 0.1)
    samples = [sample for family in text_string_to_metric_families(metrics.text().decode()) for sample in family.samples]
    assert samples and {sample.labels.get("replica") for sample in samples} == {"u1x9"}
    assert "none" in {sample.labels.get("status") for sample in samples}, "nobody was left to be answered"


def test_queues_tell_who_has_a_turn_and_who_waits() -> None:
    is_held, may_go = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        is_held.set()
        await may_go.wait()

    async def scenario() -> tuple[Scrape, Scrape]:
        async with client_of(ScriptedClassifier(held), max_running=1) as http:
            jobs = [asyncio.ensure_future(http.post("/v1/classify", files=CLIP)) for _ in range(3)]
            await is_held.wait()
            async with asyncio.timeout(30):
                while (during := await scrape(http)).value("rbft_serve_queue_waiting", queue="classifying") != 2:
                    pass
            may_go.set()
            await asyncio.gather(*jobs)
            return during, await scrape(http)

    during, then = asyncio.run(scenario())
    assert during.values("queue") == {"classifying", "explaining", "showing", "looking", "fetching"}
    assert during.value("rbft_serve_queue_running", queue="classifying") == 1
    assert during.value("rbft_serve_queue_running", queue="explaining") == 0
    for name in ("rbft_serve_queue_running", "rbft_serve_queue_waiting"):
        assert then.value(name, queue="classifying") == 0


def test_kept_videos_the_model_and_readiness_are_told() -> None:
    classifier = ScriptedClassifier()

    async def dead() -> None:
        raise EngineGoneError("the engine is dead")

    async def scenario() -> tuple[Scrape, Scrape, Scrape]:
        async with client_of(classifier) as http:
            at_first = await scrape(http)
            await http.get("/readyz")
            for _ in range(2):
                await http.post("/v1/classify", files=CLIP)
            later = await scrape(http)
            classifier.act = dead
            await http.get("/readyz")
            return at_first, later, await scrape(http)

    at_first, later, last = asyncio.run(scenario())
    assert [found.value("rbft_serve_ready") for found in (at_first, later, last)] == [0, 1, 0]
    assert at_first.value("rbft_serve_clip_cache_clips") == at_first.value("rbft_serve_clip_cache_bytes") == 0
    assert later.value("rbft_serve_clip_cache_clips") == 2
    assert later.value("rbft_serve_clip_cache_bytes") == 2 * 4 * 28 * 28 * 3
    model = {"role": "classifier", "name": VERSION.name, "fingerprint": VERSION.fingerprint}
    assert later.value("rbft_serve_model_info", **model) == 1
