"""The clients against services that are busy, broken or gone; and `rbft classify`."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from rbft import errors
from rbft.api import Problem, RationaleAnswer, RationaleStart, TextPiece
from rbft.cli import main
from rbft.client import AsyncClient, Client
from rbft.client.events import EventReader
from rbft.client.wire import KEY_ENV
from rbft.config import ServeConfig
from rbft.keys import add_key
from serve.app import build_app
from serve.examples import CLASSIFIED, EXPLAINED, STREAM
from tests.serve.conftest import listening
from tests.serve.scripted import ScriptedClassifier


def _problem(status: int, code: str, **headers: str) -> Response:
    body = Problem(title="t", status=status, detail="what is wrong", code=code)
    return Response(body.model_dump_json(), status, headers, "application/problem+json")


def _answer() -> Response:
    return Response(CLASSIFIED.model_dump_json(), 200, media_type="application/json")


@contextmanager
def _answering(*responses: Response | Callable[[], Response]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Where a service listens that gives `responses` one after the other, the last again and again; and what it was asked."""
    asked: list[dict[str, Any]] = []

    async def answer(request: Request) -> Response:
        form = await request.form()
        fields = {name: value if isinstance(value, str) else await value.read() for name, value in form.items()}
        asked.append({"at": time.monotonic(), "fields": fields, "key": request.headers.get("authorization"), "path": request.url.path})
        response = responses[min(len(asked), len(responses)) - 1]
        return response if isinstance(response, Response) else response()

    with listening(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])) as url:
        yield url, asked


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a secret name.mp4"
    path.write_bytes(b"some bytes")
    return path


def test_a_busy_service_is_asked_again_when_it_says_and_with_the_whole_video(clip: Path) -> None:
    busy = _problem(503, "overloaded", **{"Retry-After": "1"})
    limited = Response("slow down", 429, {"Retry-After": "1"})  # of a proxy in front of it
    with _answering(busy, limited, _answer) as (url, asked), Client(url) as client:
        assert client.classify(clip, "doorbell") == CLASSIFIED
    assert [request["fields"] for request in asked] == [{"context": "doorbell", "video": b"some bytes"}] * 3
    gaps = [later["at"] - earlier["at"] for earlier, later in pairwise(asked)]
    assert all(1.0 <= gap < 10.0 for gap in gaps)


def test_an_async_client_waits_without_standing_in_the_way(clip: Path) -> None:
    async def scenario() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.05)
                ticks += 1

        async with AsyncClient(url) as client:
            ticking = asyncio.ensure_future(tick())
            assert await client.classify(clip) == CLASSIFIED
            ticking.cancel()
        return ticks

    with _answering(_problem(503, "engine_gone", **{"Retry-After": "1"}), _answer) as (url, asked):
        assert asyncio.run(scenario()) >= 5
    assert len(asked) == 2


def test_a_service_that_stays_busy_is_left_in_peace_after_some_tries(clip: Path) -> None:
    busy = _problem(503, "overloaded", **{"Retry-After": "0"})
    expected = pytest.raises(errors.OverloadedError, match="what is wrong")
    with _answering(busy) as (url, asked), Client(url, max_retries=2) as client, expected:
        client.classify(clip)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (_problem(422, "video_too_large"), errors.VideoTooLargeError),
        (_problem(401, "unauthorized"), errors.UnauthorizedError),
        (_problem(504, "request_timeout"), errors.RequestTimeoutError),
        (_problem(500, "service"), errors.ServiceError),
        (_problem(422, "a code of tomorrow"), errors.ServiceError),
        (Response("<html>", 502), errors.ServiceError),
        (Response("{}", 200), errors.ServiceError),
    ],
)
def test_what_will_not_pass_is_not_asked_again(clip: Path, response: Response, error: type[errors.RBFTError]) -> None:
    with _answering(response) as (url, asked), Client(url) as client, pytest.raises(error) as raised:
        client.classify(clip)
    assert type(raised.value) is error and len(asked) == 1


def test_a_service_that_is_not_there_yet_is_asked_again(clip: Path) -> None:
    with Client("http://127.0.0.1:9", max_retries=1) as client:
        started = time.monotonic()
        with pytest.raises(errors.ServiceError, match="cannot be reached"):
            client.task()
    assert 0.5 <= time.monotonic() - started < 5


def test_options_and_key_are_sent_and_the_files_name_is_not(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _answering(_answer) as (url, asked):
        with Client(url, "rbft_given") as client:
            client.classify(clip, "doorbell", threshold=0.25, top_k=1, with_rationale=True)
        monkeypatch.setenv(KEY_ENV, "rbft_of_environment")
        with Client(url) as client:
            client.classify(clip)
    options = {"context": "doorbell", "threshold": "0.25", "top_k": "1", "with_rationale": "true", "video": b"some bytes"}
    assert [request["fields"] for request in asked] == [options, {"video": b"some bytes"}]
    assert [request["key"] for request in asked] == ["Bearer rbft_given", "Bearer rbft_of_environment"]


def test_an_address_is_sent_in_place_of_a_file() -> None:
    why = Response(EXPLAINED.model_dump_json(), 200)
    with _answering(_answer, why) as (url, asked), Client(url) as client:
        client.classify("https://clips.example.org/door.mp4", top_k=1)
        client.rationale("s3://bucket/door.mp4", "doorbell")
    assert [request["fields"] for request in asked] == [
        {"url": "https://clips.example.org/door.mp4", "top_k": "1"},
        {"url": "s3://bucket/door.mp4", "context": "doorbell"},
    ]


def test_addresses_are_not_among_many_files(url: str, clip_path: Path) -> None:
    with Client(url) as client, pytest.raises(errors.RequestError, match="many videos in one request are files"):
        client.classify_many([clip_path, "s3://bucket/door.mp4"])


def test_a_video_that_is_not_kept_any_more_is_uploaded(clip: Path) -> None:
    gone = _problem(404, "clip_expired")
    answer = Response(EXPLAINED.model_dump_json(), 200)
    with _answering(gone, answer, gone, lambda: Response(STREAM), gone) as (url, asked), Client(url) as client:
        assert client.rationale(clip, video_id="old") == EXPLAINED
        assert list(client.stream_rationale(clip, video_id="old"))[-1] == EXPLAINED
        with pytest.raises(errors.ClipExpiredError):
            client.rationale(video_id="old")
        with pytest.raises(errors.RequestError, match="give its path"):
            client.rationale()
    fields = [request["fields"] for request in asked]
    assert fields == [{"video_id": "old"}, {"video": b"some bytes"}] * 2 + [{"video_id": "old"}]


def _streaming(*pieces: str) -> Callable[[], Response]:
    return lambda: StreamingResponse(iter(pieces), media_type="text/event-stream")


def test_a_stream_that_breaks_is_an_error_after_what_was_said() -> None:
    text = 'event: text\ndata: {"text": "a"}\n\n'
    problem = "event: problem\ndata: " + Problem(title="t", status=503, detail="died", code="engine_gone").model_dump_json() + "\n\n"
    for end, error in [("", errors.ServiceError), (problem, errors.EngineGoneError), ("event: end\ndata: {\n\n", errors.ServiceError)]:
        with _answering(_streaming(text, end)) as (url, asked), Client(url) as client:
            stream = client.stream_rationale(video_id="x")
            assert next(stream) == TextPiece(text="a")
            with pytest.raises(error):
                next(stream)
        assert len(asked) == 1


def test_events_of_a_later_version_are_passed_over() -> None:
    with _answering(_streaming("event: mood\ndata: 1\n\n: a comment\n\n", STREAM)) as (url, _), Client(url) as client:
        said = list(client.stream_rationale(video_id="x"))
    assert [type(each) for each in said] == [RationaleStart, TextPiece, TextPiece, RationaleAnswer]


@given(cuts=st.lists(st.integers(0, len(STREAM.encode())), max_size=8), texts=st.lists(st.text(), max_size=4))
def test_a_stream_may_be_cut_anywhere_and_hold_any_text(cuts: list[int], texts: list[str]) -> None:
    stream = "".join(f"event: text\ndata: {TextPiece(text=text).model_dump_json()}\n\n" for text in texts).encode("utf-8", "surrogatepass")
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader = EventReader()
    found = [event for start, end in pairwise(places) for event in reader.feed(stream[start:end])]
    assert [(name, TextPiece.model_validate_json(data).text) for name, data in found] == [("text", text) for text in texts]


def test_hanging_up_ends_the_request_in_the_service() -> None:
    classifier = ScriptedClassifier()

    async def wait(number: int) -> None:
        if number == 1:
            await asyncio.Event().wait()

    classifier.before_piece = wait
    with listening(build_app(classifier, ServeConfig(), 2, 2)) as url, Client(url) as client:
        stream = client.stream_rationale(__file__)
        assert isinstance(next(stream), RationaleStart)
        assert next(stream) == TextPiece(text="Scene: ")
        assert classifier.num_closed == 0
        stream.close()
        deadline = time.monotonic() + 10
        while not classifier.num_closed and time.monotonic() < deadline:
            time.sleep(0.01)
    assert classifier.num_closed == 1


def test_the_command_answers_a_line_a_file_and_says_which_were_refused(
    url: str, clip_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"words")
    videos = [str(clip_path), str(bad), str(tmp_path / "absent.mp4"), "https://clips.example.org/door.mp4", str(clip_path)]
    assert main(["classify", *videos, "--url", url, "--why"]) == 1
    said = capsys.readouterr()
    answers = [line.split("\t") for line in said.out.splitlines() if "\t" in line]
    assert [line[0] for line in answers] == [str(clip_path)] * 2
    assert answers[0][1] in ("normal", "abnormal") and "normal=0." in answers[0][2]
    assert f"{bad}: error[video_format]" in said.err and "absent.mp4: error[video_missing]" in said.err
    assert "https://clips.example.org/door.mp4: error[url_refused]" in said.err

    assert main(["classify", str(clip_path), "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == answers[0][1]


def test_the_command_without_its_key_says_so(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    keys = tmp_path / "keys.txt"
    key = add_key(keys, "a")
    with listening(build_app(ScriptedClassifier(), ServeConfig(keys=str(keys)), 2, 2)) as url:
        assert main(["classify", str(clip), "--url", url]) == 2
        assert "error[unauthorized]" in capsys.readouterr().err
        monkeypatch.setenv(KEY_ENV, key)
        assert main(["classify", str(clip), "--url", url]) == 0
