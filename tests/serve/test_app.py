"""The routes around a classifier that does as it is told: what reaches it, what comes back, what every mishap looks like."""

import asyncio
import resource
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from rbft import errors
from rbft.api import AttentionAnswer, BatchAnswer, ClassifyAnswer, FramesAnswer, Problem, RationaleAnswer, TaskAnswer
from rbft.config import ServeConfig
from rbft.keys import add_key
from rbft.records import Clip
from serve.app import MAX_CONTEXT_CHARACTERS, build_app
from serve.problems import MEDIA_TYPE, status_of
from tests.serve.samples import SPEC, TASK
from tests.serve.scripted import FACTS, VERSION, ScriptedClassifier, client_of, raising, request

CLIP = {"video": ("../../etc/passwd", b"some bytes", "video/mp4")}


def _problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.status, problem.code) == (status, status, code)
    assert "\n" not in problem.detail and "Traceback" not in problem.detail
    return problem


def test_an_upload_is_classified_with_its_context() -> None:
    response = request(ScriptedClassifier(), "POST", "/v1/classify", files=CLIP, data={"context": "doorbell"})
    answer = ClassifyAnswer.model_validate_json(response.content)
    assert (response.status_code, answer.label, answer.probabilities) == (200, "doorbell", {"normal": 0.25, "abnormal": 0.75})
    assert (answer.model, answer.video) == (VERSION, FACTS)
    assert answer.request_id == response.headers["x-request-id"]
    assert answer.timing_s.keys() == {"receive", "queue", "decode", "engine", "total"}
    assert answer.timing_s["total"] >= sum(seconds for phase, seconds in answer.timing_s.items() if phase != "total") > 0


def test_the_classifier_sees_every_byte_of_a_large_upload() -> None:
    classifier = ScriptedClassifier()
    assert request(classifier, "POST", "/v1/classify", files={"video": b"x" * 5_000_000}).status_code == 200
    assert classifier.num_bytes == [5_000_000]


@pytest.mark.parametrize("error", [None, errors.VideoDecodeError("cut short"), ValueError("a bug")])
def test_an_upload_is_gone_after_the_answer_and_never_has_the_clients_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    classifier = ScriptedClassifier(raising(error) if error else None)
    request(classifier, "POST", "/v1/classify", files=CLIP)
    (path,) = classifier.paths
    assert path.parent == tmp_path and path.name.startswith("rbft-upload-") and CLIP["video"][0] not in path.name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.VideoEmptyError, 422),
        (errors.VideoFormatError, 415),
        (errors.NoVideoStreamError, 422),
        (errors.VideoDecodeError, 422),
        (errors.VideoTimeoutError, 422),
        (errors.VideoMemoryError, 422),
        (errors.DecoderCrashError, 422),
        (errors.DecoderStartError, 503),
        (errors.EngineError, 422),
        (errors.EngineGoneError, 503),
        (errors.OverloadedError, 503),
        (errors.RequestTimeoutError, 504),
    ],
)
def test_an_error_of_ours_becomes_its_status_and_code(error: type[errors.RBFTError], status: int) -> None:
    response = request(ScriptedClassifier(raising(error("what is wrong"))), "POST", "/v1/classify", files=CLIP)
    assert _problem(response, status, error.code).detail == "what is wrong"
    assert ("retry-after" in response.headers) == (status == 503)


def test_no_error_about_a_video_is_the_services_fault() -> None:
    kinds: list[type[errors.VideoError]] = [errors.VideoError, *errors.VideoError.__subclasses__()]
    assert {kind: 400 <= status_of(kind("")) < 500 for kind in kinds} == dict.fromkeys(kinds, True)


def test_an_error_names_the_upload_and_no_path_of_the_machine() -> None:
    classifier = ScriptedClassifier()

    async def refuse() -> None:
        raise errors.VideoDecodeError(f"{classifier.paths[0]}: cut short")

    classifier.act = refuse
    response = request(classifier, "POST", "/v1/classify", files=CLIP)
    assert _problem(response, 422, "video_decode").detail == "the upload: cut short"


@pytest.mark.parametrize("error", [ValueError("secret"), errors.ModelError("secret")])
def test_an_unexpected_error_is_a_500_that_tells_nothing(error: Exception) -> None:
    response = request(ScriptedClassifier(raising(error)), "POST", "/v1/classify", files=CLIP)
    _problem(response, 500, "service")
    assert "secret" not in response.text


async def _in_pieces(num_bytes: int) -> AsyncIterator[bytes]:
    yield b'--cut\r\nContent-Disposition: form-data; name="video"; filename="a"\r\n\r\n'
    for _ in range(num_bytes // 1000):
        yield b"x" * 1000
    yield b"\r\n--cut--\r\n"


def test_a_body_whose_header_says_too_large_is_refused_unread() -> None:
    classifier = ScriptedClassifier()
    response = request(classifier, "POST", "/v1/classify", {"max_upload_bytes": 10_000}, files={"video": b"x" * 10_000})
    assert "10000 bytes" in _problem(response, 413, "upload_too_large").detail
    assert classifier.paths == []


@pytest.mark.parametrize(("num_bytes", "status"), [(9_000, 200), (11_000, 413)])
def test_a_body_of_unknown_length_is_counted_while_it_is_read(num_bytes: int, status: int) -> None:
    headers = {"content-type": "multipart/form-data; boundary=cut"}
    config = {"max_upload_bytes": 10_000}
    response = request(ScriptedClassifier(), "POST", "/v1/classify", config, content=_in_pieces(num_bytes), headers=headers)
    assert response.status_code == status
    if status == 413:
        _problem(response, 413, "upload_too_large")


def test_bodies_of_all_requests_together_have_an_end_and_room_again_after_an_answer() -> None:
    async def scenario() -> list[httpx.Response]:
        gate = asyncio.Event()
        classifier = ScriptedClassifier(lambda: _wait(gate))
        headers = {"content-type": "multipart/form-data; boundary=cut"}
        async with client_of(classifier, max_upload_bytes=9_000, max_bytes_in_flight=9_000) as client:
            first = asyncio.create_task(client.post("/v1/classify", files={"video": b"x" * 6_000}))
            while not classifier.paths:
                await asyncio.sleep(0.01)
            declared = await client.post("/v1/classify", files={"video": b"x" * 6_000})
            counted = await client.post("/v1/classify", content=_in_pieces(6_000), headers=headers)
            small = asyncio.create_task(client.post("/v1/classify", files={"video": b"x" * 1_000}))
            while len(classifier.paths) < 2:
                await asyncio.sleep(0.01)
            gate.set()
            answered = [await first, await small]
            return [declared, counted, *answered, await client.post("/v1/classify", content=_in_pieces(6_000), headers=headers)]

    declared, counted, *answered = asyncio.run(scenario())
    for refused in (declared, counted):
        _problem(refused, 503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0 and refused.headers["connection"] == "close"
    assert [response.status_code for response in answered] == [200] * 3


def test_a_body_that_could_never_have_room_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="max_bytes_in_flight 9"):
        ServeConfig(max_upload_bytes=10, max_bytes_in_flight=9)


def test_where_the_disk_takes_no_more_the_client_is_told_to_come_again_and_the_log_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        _problem(request(ScriptedClassifier(), "POST", "/v1/classify", files={"video": b"x" * 5_000_000}), 503, "overloaded")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "errno=EFBIG" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", "/nowhere")
        response = request(ScriptedClassifier(), "POST", "/v1/classify", files=CLIP)
    assert "/nowhere" not in _problem(response, 503, "overloaded").detail and int(response.headers["retry-after"]) > 0
    assert "errno=ENOENT" in caplog.text
    assert request(ScriptedClassifier(), "POST", "/v1/classify", files=CLIP).status_code == 200


@pytest.mark.parametrize(
    ("request_", "status", "names"),
    [
        ({"json": {"video": "https://example.org/a.mp4"}}, 422, "video"),
        ({"json": {}}, 422, "video"),
        ({"json": [1]}, 400, "JSON object"),
        ({"content": b"bytes", "headers": {"content-type": "video/mp4"}}, 415, "multipart/form-data"),
        ({}, 415, "multipart/form-data"),
        ({"files": {"film": b"bytes"}}, 422, "video"),
        ({"files": {"other": b"x"}, "data": {"video": "text where a file belongs"}}, 422, "video"),
        ({"files": CLIP, "data": {"context": "x" * (MAX_CONTEXT_CHARACTERS + 1)}}, 422, "context"),
        ({"content": b"no part at all", "headers": {"content-type": "multipart/form-data; boundary=cut"}}, 400, ""),
        ({"content": b"bytes", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ],
)
def test_a_request_that_is_not_an_upload_is_told_what_is_wrong(request_: dict[str, Any], status: int, names: str) -> None:
    response = request(ScriptedClassifier(), "POST", "/v1/classify", **request_)
    assert names in _problem(response, status, "request").detail


def test_an_unknown_path_and_a_wrong_method_are_problems_too() -> None:
    _problem(request(ScriptedClassifier(), "GET", "/v1/nothing"), 404, "request")
    _problem(request(ScriptedClassifier(), "GET", "/v1/classify"), 405, "request")


def test_a_full_queue_refuses_the_next_and_serves_those_in_it() -> None:
    async def scenario() -> list[httpx.Response]:
        gate = asyncio.Event()
        classifier = ScriptedClassifier(lambda: _wait(gate))
        async with client_of(classifier, max_running=1, max_queued_requests=1) as client:
            first = asyncio.create_task(client.post("/v1/classify", files=CLIP))
            while not classifier.paths:
                await asyncio.sleep(0.01)
            others = [asyncio.create_task(client.post("/v1/classify", files=CLIP)) for _ in range(2)]
            (refused,), (waiting,) = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            gate.set()
            return [await first, await waiting, await refused]

    first, waiting, refused = asyncio.run(scenario())
    assert (first.status_code, waiting.status_code) == (200, 200)
    _problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0


async def _wait(gate: asyncio.Event) -> None:
    await gate.wait()


def test_a_request_that_takes_too_long_is_cancelled_and_frees_its_place() -> None:
    cancelled = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        classifier = ScriptedClassifier(hang)
        async with client_of(classifier, max_running=1, max_queued_requests=1, request_timeout_s=0.2) as client:
            late = await client.post("/v1/classify", files=CLIP)
            classifier.act = None
            return late, await client.post("/v1/classify", files=CLIP)

    late, next_one = asyncio.run(scenario())
    _problem(late, 504, "request_timeout")
    assert cancelled == [True]
    assert next_one.status_code == 200


def test_a_refusal_tells_how_long_each_phase_took_that_it_came_to() -> None:
    class Silent(ScriptedClassifier):
        async def classify(self, clip: Clip, context: str | None, threshold: float | None) -> ClassifyAnswer:
            return await asyncio.Event().wait()  # type: ignore[return-value]

    def phases_ms(response: httpx.Response) -> dict[str, float]:
        told = (phase.split(";dur=") for phase in response.headers["server-timing"].split(", "))
        return {name: float(duration) for name, duration in told}

    late = request(Silent(), "POST", "/v1/classify", {"request_timeout_s": 0.3}, files=CLIP)
    _problem(late, 504, "request_timeout")
    assert phases_ms(late).keys() == {"total", "receive", "queue", "decode", "engine"}
    assert phases_ms(late)["total"] >= phases_ms(late)["engine"] > 200
    broken = request(ScriptedClassifier(raising(errors.VideoDecodeError("cut short"))), "POST", "/v1/classify", files=CLIP)
    assert phases_ms(broken).keys() == {"total", "receive", "queue", "decode"}

    async def waiting_too_long() -> httpx.Response:
        app = build_app(ScriptedClassifier(), ServeConfig(request_timeout_s=0.3), 1, 1)
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client, app.state.service._classifying.turn():
            return await client.post("/v1/classify", files=CLIP)

    waiting = asyncio.run(waiting_too_long())
    assert phases_ms(waiting).keys() == {"total", "receive", "queue"} and phases_ms(waiting)["queue"] > 200


def test_the_service_is_alive_but_not_ready_when_its_engine_is_gone_and_only_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    app = build_app(broken := ScriptedClassifier(), ServeConfig(), 1, 1)

    async def scenario() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            ready = await client.get("/readyz")
            broken.act = raising(errors.EngineGoneError("died in /home/of/somebody"))
            return [ready, await client.get("/healthz"), await client.get("/readyz")]

    ready, alive, gone = asyncio.run(scenario())
    assert ready.status_code == alive.status_code == 200
    assert "somebody" not in _problem(gone, 503, "engine_gone").detail and "/home/of/somebody" in caplog.text
    assert request(ScriptedClassifier(), "GET", "/readyz").json() == {"status": "ok"}


def test_the_task_route_tells_labels_prompts_model_and_limits() -> None:
    classifier = ScriptedClassifier()
    config = {"max_upload_bytes": 12_345, "max_duration_s": 7.0, "clip_cache_s": 9.0}
    about = TaskAnswer.model_validate_json(request(classifier, "GET", "/v1/task", config).content)
    assert (about.labels, about.question, about.rationale_prompt) == (TASK.labels, TASK.question, TASK.rationale_prompt)
    assert about.headings == ("Scene",) and about.sampled.max_pixels == SPEC.max_pixels
    assert about.model == VERSION
    assert (about.limits.max_upload_bytes, about.limits.max_duration_s, about.limits.video_kept_s) == (12_345, 7.0, 9.0)


def test_where_the_model_comes_from_is_told_without_paths_and_versions() -> None:
    about = TaskAnswer.model_validate_json(request(ScriptedClassifier(), "GET", "/v1/task").content)
    assert about.lineage == {"system": "rb-ft", "base": "0123"}


def _described() -> dict[str, Any]:
    described: dict[str, Any] = request(ScriptedClassifier(), "GET", "/openapi.json").json()
    return described


def test_the_description_names_the_problems_of_each_route_with_codes_that_go_with_them() -> None:
    paths = _described()["paths"]
    for route in ("/v1/classify", "/v1/rationale"):
        responses = paths[route]["post"]["responses"]
        assert {"200", "400", "401", "408", "413", "415", "422", "503", "504"} <= responses.keys()
        for status, response in responses.items():
            if status != "200":
                example = Problem.model_validate(response["content"][MEDIA_TYPE]["example"])
                assert status_of(errors.error_from_code(example.code, "")) in (int(status), 400)
    assert "404" in paths["/v1/rationale"]["post"]["responses"]


def test_the_description_has_an_example_of_each_answer_and_says_where_a_key_is_needed(tmp_path: Path) -> None:
    paths = _described()["paths"]
    add_key(tmp_path / "keys.txt", "a")
    with_keys = build_app(ScriptedClassifier(), ServeConfig(keys=str(tmp_path / "keys.txt")), 1, 1).openapi()["paths"]
    bodies: list[tuple[str, str, type[BaseModel]]] = [
        ("/v1/classify", "post", ClassifyAnswer),
        ("/v1/rationale", "post", RationaleAnswer),
        ("/v1/attention", "post", AttentionAnswer),
        ("/v1/frames", "post", FramesAnswer),
        ("/v1/classify/batch", "post", BatchAnswer),
        ("/v1/task", "get", TaskAnswer),
    ]
    for route, method, body in bodies:
        operation = paths[route][method]
        body.model_validate(operation["responses"]["200"]["content"]["application/json"]["example"])
        assert with_keys[route][method]["security"] == [{"HTTPBearer": []}] and "security" not in operation
    assert "event: end" in paths["/v1/rationale"]["post"]["responses"]["200"]["content"]["text/event-stream"]["example"]
    assert "security" not in with_keys["/healthz"]["get"]


def test_the_description_has_json_for_every_form_that_needs_no_file() -> None:
    paths = _described()["paths"]
    content = {route: path["post"]["requestBody"]["content"] for route, path in paths.items() if "post" in path}
    json = {route: set(kinds["application/json"]["schema"]["properties"]) for route, kinds in content.items() if len(kinds) == 2}
    assert json == {
        "/v1/classify": {"url", "context", "threshold", "top_k", "with_rationale"},
        "/v1/rationale": {"url", "video_id", "context"},
        "/v1/attention": {"url", "video_id", "context"},
        "/v1/frames": {"video_id"},
    }
    assert content.keys() - json.keys() == {"/v1/classify/batch"}
    assert all("multipart/form-data" in kinds and "application/x-www-form-urlencoded" not in kinds for kinds in content.values())


def test_the_description_explains_every_field_of_an_answer() -> None:
    schemas = _described()["components"]["schemas"]
    plain = {
        "model",
        "video",
        "labels",
        "name",
        "max_context_characters",
        "limits",
        "sampled",
        "label",
        "text",
        "num_tokens",
        "width",
        "height",
    }
    for answer in ("ClassifyAnswer", "RationaleAnswer", "AttentionAnswer", "Heatmap", "BatchItem", "BatchAnswer", "TaskAnswer", "Limits"):
        unexplained = {name for name, field in schemas[answer]["properties"].items() if "description" not in field}
        assert unexplained <= plain | {"num_prompt_tokens", "request_id", "timing_s"}, answer


def test_as_many_probabilities_are_told_as_were_asked_for_the_likeliest_first() -> None:
    def told(**data: Any) -> list[str]:
        return list(request(ScriptedClassifier(), "POST", "/v1/classify", files=CLIP, data=data).json()["probabilities"])

    assert told() == told(top_k=2) == told(top_k=9) == ["abnormal", "normal"]
    assert told(top_k=1) == ["abnormal"]
    assert told(top_k=1, context="normal") == ["abnormal", "normal"], "that of the label, which a threshold may have chosen"


@pytest.mark.parametrize(("option", "value"), [("threshold", "1.5"), ("threshold", "nan"), ("threshold", "high"), ("top_k", "0")])
def test_an_option_that_makes_no_sense_is_named(option: str, value: str) -> None:
    response = request(ScriptedClassifier(), "POST", "/v1/classify", files=CLIP, data={option: value})
    assert option in _problem(response, 422, "request").detail


def test_a_threshold_is_for_two_labels() -> None:
    classifier = ScriptedClassifier()
    assert request(classifier, "POST", "/v1/classify", files=CLIP, data={"threshold": "0.4"}).json()["threshold"] == 0.4
    classifier.task = TASK.model_copy(update={"labels": ("a", "b", "c")})
    response = request(classifier, "POST", "/v1/classify", files=CLIP, data={"threshold": "0.4"})
    assert "two labels" in _problem(response, 422, "request").detail
