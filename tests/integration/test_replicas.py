"""Real Ray Serve, its proxy and several replicas of the service; the classifier in them does as it is told, so that none waits for an
engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from ray._private.authentication_test_utils import reset_auth_token_state

from rbft import errors
from rbft.api import ModelVersion, RationaleAnswer, RationaleStart
from rbft.client import Client
from rbft.config import RunConfig, load_config
from serve.__main__ import free_port
from serve.clips import keeper_of
from serve.deployment import APPLICATION, make_application
from serve.problems import MEDIA_TYPE
from serve.proxy import PROXY_SETTING
from tests.integration.conftest import check_refusals
from tests.serve.samples import write_clip
from tests.serve.scripted import ScriptedClassifier

pytestmark = pytest.mark.timeout(300)

SETTINGS = ["engine.num_cpus=0.1", "engine.max_num_seqs=2", "serve.max_queued_requests=8", "serve.canary=[]"]


def open_scripted(fingerprint: str, seconds: float, stack: ExitStack) -> ScriptedClassifier:
    """One that takes `seconds` to look at a video."""
    classifier = ScriptedClassifier(lambda: asyncio.sleep(seconds))
    classifier.version = ModelVersion(name="scripted", fingerprint=fingerprint)
    return classifier


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a Serve without applications, on a Ray of its own."""
    port = free_port("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        for name, value in PROXY_SETTING.items():
            patch.setenv(name, value)
        reset_auth_token_state()  # what a test before this one may have had Ray read in this process
        ray.init(address="local", num_cpus=4, include_dashboard=False, namespace=APPLICATION, log_to_driver=False, logging_level="error")
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "square.mp4")


@pytest.fixture(scope="module")
def deploy(repository: Path, url: str) -> Callable[..., RunConfig]:
    """Serve the scripted classifier of that fingerprint; a second time is an update."""

    def run(fingerprint: str, *settings: str, seconds: float = 0.0) -> RunConfig:
        config = load_config(repository / "configs/miniature.yaml", [*SETTINGS, *settings])
        serve.run(make_application(config, partial(open_scripted, fingerprint, seconds)), name=APPLICATION, route_prefix="/")
        return config

    return run


def test_what_serves_proxy_answers_by_itself_tells_strangers_nothing(deploy: Callable[..., RunConfig], url: str) -> None:
    deploy("a")
    routes = httpx.get(f"{url}/-/routes")
    assert (routes.status_code, routes.headers["content-type"], routes.json()["code"]) == (404, MEDIA_TYPE, "request")
    assert httpx.get(f"{url}/-/healthz").status_code == 200


def kill(replica: str = "") -> None:
    """End that replica as a crash would, or whichever there is."""
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    name = next(name for name in names if name.startswith("SERVE_REPLICA::") and name.endswith(replica))
    ray.kill(ray.get_actor(name, namespace="serve"))


def test_why_is_told_by_the_replica_that_keeps_the_video_whichever_is_asked(
    deploy: Callable[..., RunConfig], url: str, clip_path: Path
) -> None:
    deploy("a", "serve.num_replicas=2")
    with Client(url) as client:
        answers = [client.classify(clip_path, f"camera {number}") for number in range(16)]
        ids = [answer.video_id or "" for answer in answers]
        keepers = {keeper_of(video_id) for video_id in ids}
        assert len(keepers) == 2, "both were asked"
        for video_id in ids:
            assert client.rationale(video_id=video_id).text == "Scene: a room"
            start, *pieces, end = client.stream_rationale(video_id=video_id)
            assert isinstance(start, RationaleStart)
            assert isinstance(end, RationaleAnswer) and len(pieces) == 2 and end.video_id == start.video_id == video_id
            assert len(httpx.post(f"{url}/v1/frames", files={"video_id": (None, video_id)}).json()["frames"]) == 4
        with pytest.raises(errors.ClipExpiredError):
            client.rationale(video_id=f"{keeper_of(ids[0])}.never-was")
        with pytest.raises(errors.ClipExpiredError):
            client.rationale(video_id="nobody.never-was")

        gone = keeper_of(ids[0])
        kill(gone)
        for video_id in ids:
            if keeper_of(video_id) == gone:
                with pytest.raises(errors.ClipExpiredError):
                    client.rationale(video_id=video_id)
            else:
                assert client.rationale(video_id=video_id).text == "Scene: a room"


def test_an_update_answers_every_request_by_the_old_model_or_the_new(deploy: Callable[..., RunConfig], url: str, clip_path: Path) -> None:
    deploy("old", seconds=0.05)
    video = clip_path.read_bytes()
    versions: list[str] = []
    refused: list[httpx.Response] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            while not is_over.is_set():
                response = http.post("/v1/classify", files={"video": video})
                versions.append(response.headers.get("x-model-version", "none"))
                if response.status_code != 200:
                    refused.append(response)

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(ask) for _ in range(4)]
        try:
            deploy("new", seconds=0.05)
            deadline = time.monotonic() + 120
            while set(versions[-20:]) != {"new"}:
                assert time.monotonic() < deadline, Counter(versions)
                time.sleep(0.05)
        finally:
            is_over.set()
        for client in clients:
            client.result()
    assert refused == []
    assert versions[0] == "old" and set(versions) == {"old", "new"}


def test_more_than_there_is_room_for_are_told_to_come_again_and_then_answered(
    deploy: Callable[..., RunConfig], url: str, clip_path: Path
) -> None:
    deploy("slow", seconds=0.2)
    video = clip_path.read_bytes()

    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=200)) as http:
            return await asyncio.gather(*(http.post("/v1/classify", files={"video": video}) for _ in range(100)))

    responses = asyncio.run(flood())
    by_status = Counter(response.status_code for response in responses)
    assert set(by_status) == {200, 503}
    check_refusals(responses)
    assert httpx.post(f"{url}/v1/classify", files={"video": video}).status_code == 200


def test_when_the_only_replica_dies_all_are_told_to_come_again_until_there_is_another(
    deploy: Callable[..., RunConfig], url: str, clip_path: Path
) -> None:
    deploy("mortal", seconds=1.0)
    video = clip_path.read_bytes()

    def ask() -> httpx.Response:
        return httpx.post(f"{url}/v1/classify", files={"video": video}, timeout=120)

    assert ask().status_code == 200
    with ThreadPoolExecutor(4) as threads:
        under_way = [threads.submit(ask) for _ in range(4)]
        time.sleep(0.5)
        kill()
        responses = [each.result() for each in under_way]
        assert {response.status_code for response in responses} <= {200, 503} and any(r.status_code == 503 for r in responses)
        deadline = time.monotonic() + 120
        while responses[-1].status_code != 200:
            assert time.monotonic() < deadline
            responses.append(ask())
    assert {response.status_code for response in responses} == {200, 503}
    check_refusals(responses)


@pytest.mark.slow
def test_their_number_follows_the_load(deploy: Callable[..., RunConfig], url: str, clip_path: Path) -> None:
    deploy("many", "serve.max_replicas=3", seconds=1.0)

    def num_running() -> int:
        states = serve.status().applications[APPLICATION].deployments["classifier"].replica_states
        return int(states.get("RUNNING", 0))

    video = clip_path.read_bytes()
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            httpx.post(f"{url}/v1/classify", files={"video": video}, timeout=120)

    assert num_running() == 1
    with ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(ask) for _ in range(8)]
        try:
            deadline = time.monotonic() + 120
            while num_running() < 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            is_over.set()
        for client in clients:
            client.result()
