"""Where the model looks: the route around what reads attention, and the reading of a real (tiny, random) model."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from rbft import errors
from rbft.api import AttentionAnswer, ClassifyAnswer, Heatmap, ModelVersion
from rbft.client import AsyncClient, Client
from rbft.config import ModelConfig, ServeConfig
from rbft.evaluation.looking.attention import AttentionReader
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Clip
from rbft.video.pool import DecodePool
from serve.app import build_app
from serve.attention import AttentionModel, Looks
from serve.model import ServedModel
from tests.serve.conftest import listening
from tests.serve.samples import SPEC, TASK
from tests.serve.scripted import ScriptedClassifier, request

CLIP = {"video": b"some bytes"}


class ScriptedLooker:
    """Remembers what it is asked; `error` is what it meets, `hold` what it waits for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[int, str | None]] = []
        self.error = error
        self.hold: asyncio.Event | None = None
        self.num_cancelled = 0

    async def look(self, clip: Clip, context: str | None) -> Looks:
        self.asked.append((clip.num_frames, context))
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Looks((Heatmap(time_s=0.0, uri="data:,", width=1, height=1, share=1.0),), 0.25)


def _client(looker: ScriptedLooker | None, classifier: ScriptedClassifier | None = None, **config: float) -> httpx.AsyncClient:
    app = build_app(classifier or ScriptedClassifier(), ServeConfig(**config), 4, 4, looker=looker)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://127.0.0.1")


def test_a_video_classified_before_is_looked_at_without_a_second_upload_with_its_context() -> None:
    classifier, looker = ScriptedClassifier(), ScriptedLooker()

    async def scenario() -> tuple[ClassifyAnswer, list[httpx.Response]]:
        async with _client(looker, classifier) as http:
            posted = await http.post("/v1/classify", files=CLIP, data={"context": "at the door"})
            answer = ClassifyAnswer.model_validate_json(posted.content)
            about: list[dict[str, str | None]] = [{"video_id": answer.video_id}, {"video_id": answer.video_id, "context": "at the gate"}]
            asked = [await http.post("/v1/attention", data=data, files={"x": (None, b"")}) for data in about]
            return answer, [*asked, await http.post("/v1/attention", files=CLIP)]

    answer, (again, otherwise, upload) = asyncio.run(scenario())
    assert looker.asked == [(4, "at the door"), (4, "at the gate"), (4, None)] and len(classifier.paths) == 2
    looks = AttentionAnswer.model_validate_json(again.content)
    assert (looks.video_id, looks.video_share, looks.model) == (answer.video_id, 0.25, answer.model)
    assert looks.request_id == again.headers["x-request-id"] and looks.timing_s.keys() == {"receive", "queue", "attention", "total"}
    assert otherwise.status_code == 200
    assert AttentionAnswer.model_validate_json(upload.content).video_id not in (None, answer.video_id)
    assert "decode" in upload.json()["timing_s"]


def test_a_service_that_reads_no_attention_says_so() -> None:
    classifier = ScriptedClassifier()
    response = request(classifier, "POST", "/v1/attention", files=CLIP)
    assert (response.status_code, response.json()["code"]) == (404, "not_offered")
    assert "serve.attention" in response.json()["detail"] and classifier.paths == []
    assert request(classifier, "GET", "/v1/task").json()["has_attention"] is False


@pytest.mark.parametrize(
    ("error", "status"), [(errors.EngineGoneError("x"), 503), (errors.OverloadedError("x"), 503), (errors.EngineError("x"), 422)]
)
def test_what_goes_wrong_has_its_status(error: errors.RBFTError, status: int) -> None:
    async def scenario() -> httpx.Response:
        async with _client(ScriptedLooker(error)) as http:
            return await http.post("/v1/attention", files=CLIP)

    response = asyncio.run(scenario())
    assert (response.status_code, response.json()["code"]) == (status, error.code)


def test_it_has_a_queue_of_its_own_that_keeps_no_classification_waiting() -> None:
    looker = ScriptedLooker()

    async def scenario() -> list[httpx.Response]:
        looker.hold = asyncio.Event()
        async with _client(looker, max_queued_requests=1) as http:
            held = [asyncio.create_task(http.post("/v1/attention", files=CLIP)) for _ in range(2)]
            while len(looker.asked) < 2:
                await asyncio.sleep(0.01)
            others = [asyncio.create_task(http.post("/v1/attention", files=CLIP)) for _ in range(2)]
            (refused,), (waiting,) = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            classified = await http.post("/v1/classify", files=CLIP)
            looker.hold.set()
            return [await refused, classified, *await asyncio.gather(*held, waiting)]

    refused, *answered = asyncio.run(scenario())
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded") and "retry-after" in refused.headers
    assert [response.status_code for response in answered] == [200] * 4


def test_one_that_takes_too_long_is_given_up() -> None:
    looker = ScriptedLooker()

    async def scenario() -> httpx.Response:
        looker.hold = asyncio.Event()
        async with _client(looker, request_timeout_s=0.3) as http:
            return await http.post("/v1/attention", files=CLIP)

    response = asyncio.run(scenario())
    assert (response.status_code, response.json()["code"]) == (504, "request_timeout")
    assert looker.num_cancelled == len(looker.asked)


def test_clients_ask_by_the_id_and_upload_only_what_is_kept_no_more(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"some bytes")
    classifier, looker = ScriptedClassifier(), ScriptedLooker()

    async def asynchronously(url: str) -> AttentionAnswer:
        async with AsyncClient(url) as client:
            return await client.attention(clip, video_id="gone")

    with listening(build_app(classifier, ServeConfig(), 4, 4, looker=looker)) as url, Client(url) as client:
        answer = client.classify(clip, "at the door")
        assert client.attention(clip, video_id=answer.video_id).video_id == answer.video_id and len(classifier.paths) == 1
        assert asyncio.run(asynchronously(url)).video_share == 0.25 and len(classifier.paths) == 2
        with pytest.raises(errors.ClipExpiredError):
            client.attention(video_id="gone")
    with listening(build_app(classifier, ServeConfig(), 4, 4)) as url, Client(url) as client, pytest.raises(errors.NotOfferedError):
        client.attention(clip)


@pytest.fixture(scope="module")
def served(trained_folder: Path) -> ServedModel:
    return ServedModel(trained_folder, ModelVersion(name="tiny", fingerprint="f"), TASK, SPEC, {})


def test_the_maps_are_those_of_the_reports(served: ServedModel, clip_path: Path, decoders: DecodePool) -> None:
    clip = decoders.decode(str(clip_path), SPEC)
    looks = asyncio.run(AttentionModel(served, ModelConfig(path="", dtype="float32"), 1).look(clip, "at the door"))
    reader = AttentionReader(load_model(served.folder, "float32"), ChatAdapter(served.folder, SPEC), 1)
    (attention,) = reader.read([(clip, TASK.question_messages("at the door"))])
    assert looks.video_share == pytest.approx(attention.video_share, abs=1e-6) and 0 < looks.video_share < 1
    assert [heatmap.time_s for heatmap in looks.heatmaps] == list(clip.timestamps_s)
    share_T = attention.grid_THW.sum(axis=(1, 2)) / attention.video_share / 2  # two frames a token
    assert [heatmap.share for heatmap in looks.heatmaps] == pytest.approx(np.repeat(share_T, 2).tolist(), abs=1e-6)
    assert sum(heatmap.share for heatmap in looks.heatmaps) == pytest.approx(1)
    assert all(heatmap.uri.startswith("data:image/jpeg;base64,") for heatmap in looks.heatmaps)


def test_of_an_odd_number_of_frames_the_last_has_its_token_alone(served: ServedModel) -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 255, (3, 112, 112, 3), dtype=np.uint8)
    clip = Clip(frames_THWC, (0.0, 1.0, 2.0), 1.0, 3.0, 8.0, "pyav")
    looks = asyncio.run(AttentionModel(served, ModelConfig(path="", dtype="float32"), 4).look(clip, None))
    first, second, third = (heatmap.share for heatmap in looks.heatmaps)
    assert first == second and first + second + third == pytest.approx(1)
