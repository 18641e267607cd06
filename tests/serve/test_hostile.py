"""Whatever is sent, the answer is a documented status with a code, never a 500. The decoder is the real one, the engine is not."""

import asyncio
import csv
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbft.api import ModelVersion, Problem
from rbft.config import ServeConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.records import Clip
from rbft.task import Message
from rbft.video.limits import SourceLimits
from rbft.video.pool import DecodePool
from serve.app import build_app
from serve.classifier import VideoClassifier
from serve.model import ServedModel
from serve.problems import MEDIA_TYPE
from tests.serve.conftest import listening
from tests.serve.hostile import hostile_files
from tests.serve.samples import SPEC, TASK, write_other
from tests.serve.scripted import ScriptedClassifier, client_of, request, scope_of

CONFIG = ServeConfig()
STATUS_OF_CODE = {"video_format": 415, "upload_too_large": 413}
"""Of the codes that a bad file is refused with, those whose status is not 422."""


class EvenEngine:
    """Finds every label as likely as the others, and has nothing to say."""

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        return Generated("nothing", 1, 1, "stop")

    async def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        yield await self.generate(clip, messages, sampling)

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        return dict.fromkeys(labels, -1.0)

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        raise NotImplementedError

    async def check_health(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def classifier() -> Iterator[VideoClassifier]:
    limits = SourceLimits(CONFIG.max_duration_s, CONFIG.max_frames, CONFIG.max_frame_pixels)
    model = ServedModel(Path(), ModelVersion(name="even", fingerprint="f"), TASK, SPEC, {})
    with DecodePool(1, 20.0, 1 << 30, limits) as decoders:
        yield VideoClassifier(EvenEngine(), decoders, model, Sampling(4))


def _refused(classifier: VideoClassifier, uploads: dict[str, bytes]) -> dict[str, str]:
    """Name of an upload -> the code it was refused with, or "ok". Fails on a response that is not as documented."""

    async def send_all() -> dict[str, str]:
        transport = httpx.ASGITransport(build_app(classifier, CONFIG, 4, 4), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
            return {name: _code(name, await http.post("/v1/classify", files={"video": upload})) for name, upload in uploads.items()}

    return asyncio.run(send_all())


def _code(name: str, response: httpx.Response) -> str:
    if response.status_code == 200:
        return "ok"
    assert response.headers["content-type"] == MEDIA_TYPE, name
    problem = Problem.model_validate_json(response.content)
    assert response.status_code == STATUS_OF_CODE.get(problem.code, 422), f"{name}: {problem}"
    assert "\n" not in problem.detail and "/tmp" not in problem.detail, f"{name}: {problem}"
    return problem.code


def test_every_hostile_file_gets_its_code(classifier: VideoClassifier, clip_path: Path, tmp_path: Path) -> None:
    files = hostile_files(clip_path.read_bytes(), clip_path, tmp_path)
    assert len(files) > 150
    codes = _refused(classifier, {name: file.content for name, file in files.items()})
    assert {name: code for name, code in codes.items() if code not in files[name].codes} == {}
    assert _refused(classifier, {"good": clip_path.read_bytes()}) == {"good": "ok"}, "the next good one is answered"


def _media() -> list[Path]:
    """The folder of real files, which are too large for the repository, where somebody has put it beside it."""
    return [found for parent in Path(__file__).resolve().parents if (found := parent / "shared" / "media").is_dir()][:1]


def _drawn(folder: Path) -> list[dict[str, str]]:
    """As the manifest of the real files has them."""
    kinds = [write_other(folder / name) for name in ("a.mp4", "a.mkv", "a.mov", "a.webm", "a.avi", "a.mpg")]
    (folder / "words.mp4").write_text("these are words, not pictures")
    expected = dict.fromkeys((path.name for path in kinds), "frames") | {"words.mp4": "no_video"}
    return [{"file": name, "suite": ".", "expected": what} for name, what in expected.items()]


@pytest.mark.parametrize("media", [None, *(pytest.param(found, marks=pytest.mark.slow, id="real") for found in _media())])
def test_files_of_many_kinds_are_answered_or_refused_as_documented(classifier: VideoClassifier, media: Path | None, tmp_path: Path) -> None:
    if media is None:
        rows = _drawn(tmp_path)
    else:
        with (media / "manifest.csv").open() as table:
            rows = list(csv.DictReader(table))
    codes = _refused(classifier, {row["file"]: ((media or tmp_path) / row["suite"] / row["file"]).read_bytes() for row in rows})
    sound = [row["file"] for row in rows if row["expected"] == "frames"]
    assert sum(codes[name] == "ok" for name in sound) > 0.9 * len(sound)
    assert all(codes[row["file"]] != "ok" for row in rows if row["expected"] == "no_video")


def _part(disposition: str, content: str = "x", more: str = "") -> str:
    return f"--cut\r\nContent-Disposition: {disposition}\r\n{more}\r\n{content}\r\n"


_VIDEO = _part('form-data; name="video"; filename="a"')
_MULTIPART = "multipart/form-data; boundary=cut"

_END = "--cut--\r\n"
_CONTEXT = 'form-data; name="context"'

BODIES: dict[str, tuple[str, str | bytes, int]] = {
    "200 fields": (_MULTIPART, _VIDEO + "".join(_part(f'form-data; name="f{i}"') for i in range(200)) + _END, 400),
    "200 files": (_MULTIPART, "".join(_part(f'form-data; name="video"; filename="{i}"') for i in range(200)) + _END, 400),
    "two videos": (_MULTIPART, _VIDEO + _VIDEO + _END, 400),
    "a long field": (_MULTIPART, _VIDEO + _part(_CONTEXT, "x" * 70_000) + _END, 400),
    "no end": (_MULTIPART, _VIDEO, 422),
    "nothing": (_MULTIPART, "", 422),
    "only an end": (_MULTIPART, _END, 422),
    "another boundary": (_MULTIPART, _VIDEO.replace("cut", "put"), 400),
    "a part without a name": (_MULTIPART, _part("form-data") + _END, 400),
    "a part without a disposition": (_MULTIPART, "--cut\r\nX: y\r\n\r\nx\r\n--cut--\r\n", 400),
    "a header without a colon": (_MULTIPART, "--cut\r\nnonsense\r\n\r\nx\r\n--cut--\r\n", 400),
    "a header of a megabyte": (_MULTIPART, _part(_CONTEXT, more=f"X: {'y' * 1_000_000}\r\n") + _END, 400),
    "no boundary": ("multipart/form-data", _VIDEO, 400),
    "an empty boundary": ("multipart/form-data; boundary=", _VIDEO, 400),
    "a long boundary": (f"multipart/form-data; boundary={'b' * 5000}", _VIDEO, 400),
    "a character set that is none": (_MULTIPART + "; charset=base64", _VIDEO + _part(_CONTEXT) + _END, 200),
    "bytes that are no text": (_MULTIPART, (_VIDEO + _part(_CONTEXT, "\xff\xfe\x00") + _END).encode("latin-1"), 200),
    "a name that is no text": (_MULTIPART, (_part('form-data; name="\xff\x00"; filename="\xff"') + _END).encode("latin-1"), 422),
    "another kind of multipart": ("multipart/mixed; boundary=cut", _VIDEO + _END, 415),
    "form-data in name only": ("multipart/form-data-not", _VIDEO, 415),
    "no kind": ("", _VIDEO, 415),
    "URL-encoded": ("application/x-www-form-urlencoded", "video=x", 415),
    "JSON of another kind": ("application/problem+json", '{"url": "x"}', 415),
    "a file in JSON": ("application/json", '{"video": "x"}', 422),
    "a file in JSON as an object": ("application/json", '{"video": {"file": "x", "filename": "y"}}', 422),
    "an empty object": ("application/json", "{}", 422),
    "nulls": ("application/json", '{"url": null, "video": null}', 422),
    "no JSON": ("application/json", "{", 400),
    "no bytes of JSON": ("application/json", "", 400),
    "a list": ("application/json", "[]", 400),
    "a number": ("application/json", "7", 400),
    "a number of 5000 digits": ("application/json", f'{{"url": {"9" * 5000}}}', 400),
    "deep JSON": ("application/json", "[" * 100_000, 400),
    "a deep field": ("application/json", f'{{"url": {"[" * 500 + "]" * 500}}}', 422),
    "half a character": ("application/json", r'{"url": "\ud800"}', 422),
    "JSON that is no text": ("application/json", b'{"url": "\xff"}', 400),
    "JSON in UTF-16": ("application/json", '{"url": null}'.encode("utf-16"), 422),
    "no threshold": ("application/json", '{"threshold": NaN, "top_k": NaN}', 422),
    "a flag that is none": ("application/json", '{"url": "https://x.test/", "context": ["x"], "with_rationale": {}}', 422),
    "a URL where none is taken": ("application/json", '{"url": "https://example.org/a.mp4"}', 403),
    "a URL and a file": (_MULTIPART, _VIDEO + _part('form-data; name="url"', "https://example.org/") + _END, 422),
    "much JSON": ("application/json", '{"url": "' + "x" * 300_000 + '"}', 413),
}


@pytest.mark.parametrize("route", ["/v1/classify", "/v1/rationale", "/v1/attention"])
@pytest.mark.parametrize("name", BODIES)
def test_every_malformed_body_gets_its_status(name: str, route: str) -> None:
    content_type, body, status = BODIES[name]
    response = request(ScriptedClassifier(), "POST", route, content=body, headers={"Content-Type": content_type})
    if route == "/v1/attention" and status in (200, 403):  # a good one after all, where attention is off
        assert (response.status_code, response.json()["code"]) == (404, "not_offered")
        return
    assert response.status_code == status, response.text
    if status != 200:
        assert response.headers["content-type"] == MEDIA_TYPE
        code = {413: "upload_too_large", 403: "url_refused"}.get(status, "request")
        assert Problem.model_validate_json(response.content).code == code


_PIECES = [
    "--cut",
    "--",
    "\r\n",
    "\n",
    ":",
    ";",
    "=",
    '"',
    "Content-Disposition: form-data",
    'name="video"',
    'filename="a"',
    "x" * 50,
    "\0",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=25))
def test_no_body_made_of_the_pieces_of_multipart_is_too_much(pieces: list[str]) -> None:
    headers = {"Content-Type": _MULTIPART}
    response = request(ScriptedClassifier(), "POST", "/v1/classify", content="--cut\r\n" + "".join(pieces), headers=headers)
    assert response.status_code in (200, 400, 422)


def test_a_client_that_sends_its_body_too_slowly_is_told_and_let_go() -> None:
    async def body() -> AsyncGenerator[bytes, None]:
        yield _VIDEO.encode()
        await asyncio.sleep(30)
        yield b"--cut--\r\n"

    async def scenario() -> Any:
        """By hand, as httpx waits for its own body."""
        app = build_app(ScriptedClassifier(), ServeConfig(body_timeout_s=0.2), 1, 1)
        sent: list[Any] = []
        pieces = body()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(pieces), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = scope_of("/v1/classify", {"Content-Type": _MULTIPART})
        await asyncio.wait_for(app(scope, receive, send), 10)
        return sent

    start, *rest = asyncio.run(scenario())
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    assert Problem.model_validate_json(rest[0]["body"]).code == "upload_timeout"


def test_a_body_that_is_there_in_time_is_not_cut_short_while_its_answer_is_made() -> None:
    async def scenario() -> int:
        async with client_of(ScriptedClassifier(lambda: asyncio.sleep(0.5)), body_timeout_s=0.2) as http:
            return (await http.post("/v1/classify", files={"video": b"x"})).status_code

    assert asyncio.run(scenario()) == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Content-Length: 100000", 408),  # and then nothing comes
        ("Content-Length: 100000000", 413),
        ("Transfer-Encoding: chunked", 408),
        ("Content-Length: -1", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
    ],
)
def test_on_a_real_socket_a_body_that_does_not_come_ends_the_connection(head: str, status: int) -> None:
    with listening(build_app(ScriptedClassifier(), ServeConfig(body_timeout_s=0.3), 1, 1)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            request = f"POST /v1/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {_MULTIPART}\r\n{head}\r\n\r\n"
            connection.sendall(request.encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert httpx.get(f"{url}/healthz").status_code == 200
