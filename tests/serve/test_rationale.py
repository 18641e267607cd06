"""Why: by upload or by the id of a video seen before, as JSON or as events; and what becomes of it when nobody listens."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbft import errors
from rbft.api import ClassifyAnswer, Problem, RationaleAnswer, RationaleStart, TextPiece
from rbft.config import ServeConfig
from rbft.keys import add_key
from serve.app import build_app
from tests.serve.scripted import ScriptedClassifier, client_of, raising, request, scope_of

CLIP = {"video": ("clip.mp4", b"some bytes")}
STREAM = {"Accept": "text/event-stream"}


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of each event."""
    found = []
    for block in text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def by_id(video_id: str) -> dict[str, Any]:
    return {"files": {"video_id": (None, video_id)}}


async def _classified(http: httpx.AsyncClient, **data: Any) -> ClassifyAnswer:
    response = await http.post("/v1/classify", files=CLIP, data=data)
    assert response.status_code == 200, response.text
    return ClassifyAnswer.model_validate_json(response.content)


def test_why_needs_no_second_upload() -> None:
    classifier = ScriptedClassifier()

    async def scenario() -> tuple[ClassifyAnswer, RationaleAnswer]:
        async with client_of(classifier) as http:
            answer = await _classified(http, context="doorbell")
            response = await http.post("/v1/rationale", **by_id(answer.video_id or ""))
            return answer, RationaleAnswer.model_validate_json(response.content)

    answer, why = asyncio.run(scenario())
    assert answer.video_expires_s == ServeConfig().clip_cache_s
    assert (why.text, why.video_id) == ("Scene: a room", answer.video_id)
    assert why.request_id != answer.request_id
    assert "decode" not in why.timing_s and len(classifier.paths) == 1
    (seen,) = classifier.explained
    assert (seen.context, seen.label) == ("doorbell", "doorbell"), "it is about the same text and the answer that was given"


def test_another_context_may_come_with_the_question_why() -> None:
    classifier = ScriptedClassifier()

    async def scenario() -> None:
        async with client_of(classifier) as http:
            answer = await _classified(http, context="doorbell")
            await http.post("/v1/rationale", files={"video_id": (None, str(answer.video_id)), "context": (None, "back door")})

    asyncio.run(scenario())
    assert classifier.explained[0].context == "back door"


def test_an_upload_can_be_explained_at_once_and_again() -> None:
    classifier = ScriptedClassifier()

    async def scenario() -> list[httpx.Response]:
        async with client_of(classifier) as http:
            first = await http.post("/v1/rationale", files=CLIP)
            return [first, await http.post("/v1/rationale", **by_id(first.json()["video_id"]))]

    assert [response.json()["text"] for response in asyncio.run(scenario())] == ["Scene: a room"] * 2
    assert len(classifier.paths) == 1


def test_a_video_belongs_to_the_key_that_uploaded_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    ours, theirs = ({"Authorization": f"Bearer {add_key(keys, name)}"} for name in ("ours", "theirs"))

    async def scenario() -> list[httpx.Response]:
        async with client_of(ScriptedClassifier(), keys=str(keys)) as http:
            video_id = (await http.post("/v1/classify", files=CLIP, headers=ours)).json()["video_id"]
            return [await http.post("/v1/rationale", **by_id(video_id), headers=headers) for headers in (theirs, ours)]

    refused, answered = asyncio.run(scenario())
    assert (refused.status_code, refused.json()["code"]) == (404, "clip_expired")
    assert answered.status_code == 200


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({}, 415, "request"),
        ({"files": {"context": (None, "only text")}}, 422, "request"),
        ({"files": CLIP | {"video_id": (None, "x")}}, 422, "request"),
        (by_id("x" * 65), 422, "request"),
        (by_id("x"), 404, "clip_expired"),
        (by_id(""), 422, "request"),
        (by_id("\x00é"), 404, "clip_expired"),
    ],
)
@pytest.mark.parametrize("headers", [{}, STREAM], ids=["JSON", "events"])
def test_a_question_about_no_video_or_two_is_told_so(form: dict[str, Any], status: int, code: str, headers: dict[str, str]) -> None:
    response = request(ScriptedClassifier(), "POST", "/v1/rationale", headers=headers, **form)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_nothing_is_kept_where_the_cache_has_no_room() -> None:
    async def scenario() -> ClassifyAnswer:
        async with client_of(ScriptedClassifier(), clip_cache_bytes=0) as http:
            return await _classified(http)

    answer = asyncio.run(scenario())
    assert (answer.video_id, answer.video_expires_s) == (None, None)


def test_an_answer_can_bring_its_reasons() -> None:
    async def scenario() -> ClassifyAnswer:
        async with client_of(ScriptedClassifier()) as http:
            return await _classified(http, with_rationale="true")

    answer = asyncio.run(scenario())
    assert answer.rationale and answer.rationale.text == "Scene: a room"
    assert (answer.rationale.video_id, answer.rationale.request_id) == (answer.video_id, answer.request_id)
    assert answer.timing_s["rationale"] > 0


def test_a_rationale_that_finds_no_room_does_not_take_the_label_with_it() -> None:
    classifier = ScriptedClassifier()
    gate = asyncio.Event()

    async def wait(number: int) -> None:
        await gate.wait()

    classifier.before_piece = wait

    async def scenario() -> tuple[ClassifyAnswer, list[int]]:
        async with client_of(classifier, max_running=1, max_queued_requests=1) as http:
            others = [asyncio.create_task(http.post("/v1/rationale", files=CLIP)) for _ in range(3)]
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)  # one is refused: the other two fill the places
            answer = await _classified(http, context="abnormal", with_rationale="true")
            gate.set()
            return answer, sorted([(await other).status_code for other in others])

    answer, others = asyncio.run(scenario())
    assert answer.label == "abnormal" and answer.video_id and answer.rationale is None and others == [200, 200, 503]
    problem = answer.rationale_problem
    assert problem is not None and (problem.code, problem.status) == ("overloaded", 503)


def test_a_rationale_that_is_not_ready_in_time_does_not_take_the_label_with_it() -> None:
    classifier = ScriptedClassifier()

    async def wait(number: int) -> None:
        await asyncio.Event().wait()

    classifier.before_piece = wait

    async def scenario() -> ClassifyAnswer:
        async with client_of(classifier, request_timeout_s=1.0) as http:
            return await _classified(http, context="abnormal", with_rationale="true")

    answer = asyncio.run(scenario())
    assert answer.label == "abnormal" and answer.rationale_problem is not None and answer.rationale_problem.code == "request_timeout"
    assert classifier.num_closed == 1


def test_a_stream_has_its_start_its_pieces_and_the_whole_at_the_end() -> None:
    response = request(ScriptedClassifier(), "POST", "/v1/rationale", files=CLIP, headers=STREAM)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    (first, start), *pieces, (last, end) = events(response.text)
    answer = RationaleAnswer.model_validate(end)
    assert (first, last) == ("start", "end")
    assert RationaleStart.model_validate(start).request_id == answer.request_id == response.headers["x-request-id"]
    assert [(name, TextPiece.model_validate(data).text) for name, data in pieces] == [("text", "Scene: "), ("text", "a room")]
    assert answer.text == "Scene: a room" and answer.timing_s["decode"] > 0


def test_a_piece_comes_before_the_next_is_written() -> None:
    gate = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 1:
            await gate.wait()

    classifier = ScriptedClassifier()
    classifier.before_piece = wait

    def look(sent: bytes) -> bool:
        if b"Scene" in sent:
            gate.set()
        return False

    sent, finished = asyncio.run(_streamed(classifier, look))
    assert finished and b"a room" in sent


def test_text_that_looks_like_an_event_is_no_event() -> None:
    classifier = ScriptedClassifier(pieces=["a\n\nevent: end\ndata: {}\n\n", "<script>\r\n\u2028"])
    response = request(classifier, "POST", "/v1/rationale", files=CLIP, headers=STREAM)
    assert [name for name, _ in events(response.text)] == ["start", "text", "text", "end"]


def test_what_fails_before_the_first_word_is_a_problem_with_its_status() -> None:
    for headers in ({}, STREAM):
        bad = request(ScriptedClassifier(raising(errors.VideoDecodeError("cut"))), "POST", "/v1/rationale", files=CLIP, headers=headers)
        assert (bad.status_code, bad.json()["code"]) == (422, "video_decode")
        assert bad.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("error", "code"), [(errors.EngineGoneError("died"), "engine_gone"), (ValueError("secret"), "service")], ids=["ours", "a bug"]
)
def test_what_fails_after_the_first_word_is_an_event(error: Exception, code: str) -> None:
    async def fail(number: int) -> None:
        if number == 1:
            raise error

    classifier = ScriptedClassifier()
    classifier.before_piece = fail
    response = request(classifier, "POST", "/v1/rationale", files=CLIP, headers=STREAM)
    *_, (name, data) = events(response.text)
    assert (name, Problem.model_validate(data).code) == ("problem", code)
    assert "secret" not in response.text


async def _streamed(
    classifier: ScriptedClassifier,
    look: Callable[[bytes], bool] = lambda _: False,
    headers: dict[str, str] = STREAM,
    *,
    hangs_up_early: bool = False,
) -> tuple[bytes, bool]:
    """What a client is sent, and whether it got the end. It hangs up when `look` at what it has got says so, or as soon as it is asked."""
    app = build_app(classifier, ServeConfig(), 4, 4)
    body = httpx.Request("POST", "http://127.0.0.1/v1/rationale", files=CLIP, headers=headers)
    gone, sent, finished = asyncio.Event(), b"", False
    bodies = [{"type": "http.request", "body": body.read(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if bodies:
            return bodies.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent, finished
        if message["type"] == "http.response.body":
            sent += message["body"]
            finished = not message.get("more_body", False)
        if look(sent):
            gone.set()

    scope = scope_of("/v1/rationale", dict(body.headers))
    task = asyncio.ensure_future(app(scope, receive, send))
    if hangs_up_early:
        while not classifier.explained:
            await asyncio.sleep(0.01)
        gone.set()
    await asyncio.wait_for(task, 10)
    return sent, finished


async def _forever(number: int) -> None:
    if number == 1:
        await asyncio.Event().wait()


def test_a_client_that_hangs_up_ends_its_stream_in_the_engine() -> None:
    classifier = ScriptedClassifier()
    classifier.before_piece = _forever
    sent, _ = asyncio.run(_streamed(classifier, lambda sent: b"Scene" in sent))
    assert classifier.num_closed == 1
    assert b"event: end" not in sent


@pytest.mark.parametrize("headers", [{}, STREAM], ids=["JSON", "events"])
def test_a_client_that_hangs_up_before_the_first_word_ends_its_request_too(headers: dict[str, str]) -> None:
    classifier = ScriptedClassifier()
    classifier.before_piece = _waiting_for(asyncio.Event())
    asyncio.run(_streamed(classifier, headers=headers, hangs_up_early=True))
    assert classifier.num_closed == 1


def _waiting_for(gate: asyncio.Event) -> Callable[[int], Awaitable[None]]:
    async def wait(number: int) -> None:
        await gate.wait()

    return wait


def test_rationales_leave_room_for_classification() -> None:
    """As many as may run, and as many as may wait, and one more: only that one is refused, and labels are answered meanwhile."""
    gate = asyncio.Event()
    classifier = ScriptedClassifier()
    classifier.before_piece = _waiting_for(gate)

    async def scenario() -> tuple[list[int], ClassifyAnswer]:
        async with client_of(classifier, max_running=2, max_queued_requests=2) as http:
            asked = [asyncio.ensure_future(http.post("/v1/rationale", files=CLIP)) for _ in range(5)]
            (refused,), _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            answer = await _classified(http)
            gate.set()
            return [refused.result().status_code, *sorted([(await task).status_code for task in asked])], answer

    statuses, answer = asyncio.run(scenario())
    assert statuses == [503, 200, 200, 200, 200, 503]
    assert answer.label
