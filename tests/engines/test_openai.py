"""The engine that asks a server, against a small server on loopback that speaks the protocol and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from rbft.config import OpenAIServerConfig
from rbft.engines.base import Generated, Sampling
from rbft.engines.openai import OpenAIEngine
from rbft.errors import ConfigError, EngineError, EngineGoneError, ModelRefusedError, ModelServerError, ModelServerRefusedError, RBFTError
from tests.openai_server import Reply, Server, completion, failure
from tests.samples import TASK, random_clip

KEY = "key-4f9a1c"
CLIP = random_clip(6, fps=0.5)
GREEDY = Sampling(32)
MESSAGES = TASK.rationale_messages("A title.")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def ask(server: Server, sampling: Sampling = GREEDY, times: int = 1, **settings: Any) -> list[Generated]:
    """What a new engine with `settings` is answered about the clip, `times` times at once."""

    async def run() -> list[Generated]:
        engine = OpenAIEngine(server.config(**settings))
        try:
            return await asyncio.gather(*(engine.generate(CLIP, MESSAGES, sampling) for _ in range(times)))
        finally:
            engine.close()

    return asyncio.run(run())


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-another-server")


def decode(url: str, kind: str) -> list[np.ndarray]:
    head, *jpegs = url.split(",")
    assert head == f"data:{kind}/jpeg;base64"
    images = [Image.open(io.BytesIO(base64.b64decode(jpeg, validate=True))) for jpeg in jpegs]
    assert {image.format for image in images} == {"JPEG"}
    return [np.asarray(image) for image in images]


def assert_are_the_clips_frames(frames: list[np.ndarray]) -> None:
    differences_NN = np.array([[np.abs(sent.astype(int) - true).mean() for true in CLIP.frames_THWC] for sent in frames])
    assert differences_NN.argmin(axis=1).tolist() == list(range(CLIP.num_frames))
    # Noise is the worst a JPEG can be asked to keep; two frames of it differ by 85 on average.
    assert differences_NN.diagonal().max() < 4


def test_the_answer_carries_the_servers_text_counts_and_reason(server: Server) -> None:
    server.replies = [completion(" A dog.\n", "stop"), completion("A", "length")]
    assert ask(server) == [Generated("A dog.", 21, 4, "stop")]
    assert ask(server) == [Generated("A", 21, 4, "length")]


def test_frames_go_as_images_after_their_times_where_the_video_stood(server: Server) -> None:
    ask(server)
    (message,) = server.asked[0]["messages"]
    *frames, text = message["content"]
    assert message["role"] == "user" and text == MESSAGES[0]["content"][1]
    assert [part["type"] for part in frames] == ["text", "image_url"] * CLIP.num_frames
    assert [part["text"] for part in frames[::2]] == ["0.0 s", "2.0 s", "4.0 s", "6.0 s", "8.0 s", "10.0 s"]
    assert_are_the_clips_frames([frame for part in frames[1::2] for frame in decode(part["image_url"]["url"], "image")])
    assert "media_io_kwargs" not in server.asked[0]


def test_frames_go_as_one_video_with_their_number_and_rate(server: Server) -> None:
    ask(server, frames="video")
    (asked,) = server.asked
    video, text = asked["messages"][0]["content"]
    assert text == MESSAGES[0]["content"][1]
    assert_are_the_clips_frames(decode(video["video_url"]["url"], "video"))
    assert asked["media_io_kwargs"] == {"video": {"num_frames": -1, "fps": 0.5}}
    assert "media_io_kwargs" in server.trials[0]  # so that a server that does not allow it is found out at the start


def test_sampling_and_extra_body_go_with_the_request(server: Server) -> None:
    ask(server, GREEDY)
    ask(server, Sampling(32, 0.7, seed=5), extra_body={"top_p": 0.9, "max_tokens": None, "max_completion_tokens": 32})
    greedy, drawn = ({name: value for name, value in asked.items() if name != "messages"} for asked in server.asked)
    assert greedy == {"model": "teacher", "max_tokens": 32, "temperature": 0.0}
    assert drawn == {"model": "teacher", "max_tokens": None, "temperature": 0.7, "seed": 5, "top_p": 0.9, "max_completion_tokens": 32}


def test_a_busy_server_is_asked_again_when_it_says(server: Server) -> None:
    server.replies = [failure(429, Retry_After="1.5"), completion()]
    assert ask(server) == [Generated("A dog.", 21, 4, "stop")]
    first_s, second_s = server.arrived_s
    assert second_s - first_s >= 1.5  # by itself the client would have waited 0.5 s at most


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_server_that_goes_on_failing_is_given_up_as_a_server_error(server: Server, status: int) -> None:
    server.replies = [failure(status, "the GPU\nis on fire", Retry_After="0.01")]
    with pytest.raises(ModelServerError, match=f"{server.url}: .*after up to 2 retries: HTTP {status}: .*the GPU is on fire") as caught:
        ask(server)
    assert caught.value.code == "server_error"
    assert len(server.asked) == 3


def test_a_server_that_hangs_is_asked_again_and_given_up(server: Server) -> None:
    given_up = threading.Event()
    server.on_request = lambda: given_up.wait(60)
    try:
        with pytest.raises(ModelServerError, match=r"no answer within 0\.3 s, after up to 1 retries"):
            ask(server, timeout_s=0.3, max_retries=1)
    finally:
        given_up.set()
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_request_that_the_server_will_not_have_is_not_asked_again(server: Server, status: int) -> None:
    server.replies = [failure(status, "this video is too long")]
    with pytest.raises(ModelServerRefusedError, match=f"refused the request: HTTP {status}: .*this video is too long") as caught:
        ask(server)
    assert caught.value.code == "server_refused"
    assert len(server.asked) == 1


def test_a_refusal_of_the_model_is_text_for_the_gates(server: Server) -> None:
    server.replies = [completion(None, refusal="I'm sorry, I can't help with that.")]
    assert ask(server) == [Generated("I'm sorry, I can't help with that.", 21, 4, "stop")]


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (completion(""), ModelServerError, r"no text \(finish_reason stop, 4 tokens\)"),
        (completion(None, "length"), ModelServerError, r"no text \(finish_reason length"),
        (completion("A do", "content_filter"), ModelRefusedError, "content_filter"),
        (completion("A do", "error"), ModelServerError, "a text that is not whole .*error"),
        (completion("A do", None), ModelServerError, "a text that is not whole .*None"),
        ((200, {}, {"choices": []}), ModelServerError, "no chat completion"),
        ((200, {}, {"choices": None, "error": {"message": "overloaded"}}), ModelServerError, "no chat completion.*overloaded"),
        ((200, {}, '{"choices": [{"mess'), ModelServerError, "no chat completion"),
        ((200, {"Content-Type": "text/html"}, "<html>Welcome"), ModelServerError, "no chat completion: <html>Welcome"),
    ],
)
def test_an_answer_without_a_whole_text_is_an_error(server: Server, reply: Reply, error: type[RBFTError], message: str) -> None:
    server.replies = [reply]
    with pytest.raises(error, match=message) as caught:
        ask(server)
    assert type(caught.value) is error


def test_a_server_that_counts_no_tokens_is_listened_to_all_the_same(server: Server) -> None:
    status, headers, body = completion()
    server.replies = [(status, headers, body | {"usage": None})]
    assert ask(server) == [Generated("A dog.", 0, 0, "stop")]


def test_as_many_requests_are_under_way_as_allowed_and_no_more(server: Server) -> None:
    lock, together = threading.Lock(), threading.Barrier(3, timeout=30)
    now, most = 0, 0

    def hold() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()  # breaks unless three come at once
        time.sleep(0.05)
        with lock:
            now -= 1

    server.on_request = hold
    assert len(ask(server, times=9, max_concurrency=3)) == 9
    assert most == 3


def test_the_key_goes_in_the_header_and_nowhere_else(server: Server, key: None) -> None:
    ask(server, api_key_env="TEACHER_KEY")
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(server.asked)


def test_without_a_key_of_its_own_the_server_gets_no_other_servers_key(server: Server, key: None) -> None:
    ask(server)
    assert server.keys == {"Bearer none"}


@pytest.mark.parametrize("status", [400, 500])
def test_a_key_that_the_server_repeats_stays_out_of_the_message(server: Server, key: None, status: int) -> None:
    server.replies = [failure(status, f"you sent {KEY}")]
    with pytest.raises(ModelServerError, match="you sent …") as caught:
        ask(server, api_key_env="TEACHER_KEY", max_retries=0)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "check the key: the environment variable TEACHER_KEY holds one"),
        (403, "check the key"),
        (404, "check the model's name .teacher."),
        (400, "extra_body"),
    ],
)
def test_a_server_that_would_refuse_every_video_is_found_out_at_the_start(server: Server, key: None, status: int, advice: str) -> None:
    server.trial = failure(status, f"not with {KEY}")
    with pytest.raises(ConfigError, match=f"{server.url}.*HTTP {status}.*{advice}") as caught:
        OpenAIEngine(server.config(api_key_env="TEACHER_KEY"))
    assert KEY not in str(caught.value)


def test_a_url_that_is_no_such_server_is_found_out_at_the_start(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"404.*ends in /v1"):
        OpenAIEngine(server.config(url=server.url + "/v2"))
    server.trial = (200, {"Content-Type": "text/html"}, "<html>Welcome</html>")
    with pytest.raises(ConfigError, match=r"does not answer as an OpenAI-compatible server.*ends in /v1"):
        OpenAIEngine(server.config())


def test_a_key_that_is_not_set_is_named(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"environment variable NO_SUCH_KEY .*not set"):
        OpenAIEngine(server.config(api_key_env="NO_SUCH_KEY"))


def test_a_server_that_is_not_there_is_a_server_error_at_the_start(server: Server) -> None:
    server.close()
    with pytest.raises(ModelServerError, match="cannot be reached, after up to 1 retries; start the server"):
        OpenAIEngine(server.config(max_retries=1))


def test_health_is_whether_the_server_answers(server: Server) -> None:
    async def run() -> None:
        engine = OpenAIEngine(server.config(max_retries=0))
        await engine.check_health()
        server.models = failure(404)  # no list of models
        await engine.check_health()
        server.models = failure(503, "shutting down")
        with pytest.raises(EngineGoneError, match=r"HTTP 503: .*shutting down"):
            await engine.check_health()
        engine.close()
        engine.close()
        with pytest.raises(EngineGoneError, match="closed"):
            await engine.generate(CLIP, MESSAGES, Sampling(8))

    asyncio.run(run())


def test_likelihoods_of_labels_are_refused_with_a_reason(server: Server) -> None:
    engine = OpenAIEngine(server.config())
    for question in (engine.score(CLIP, MESSAGES, TASK.labels), engine.answer(CLIP, MESSAGES, TASK.labels, 8)):
        with pytest.raises(EngineError, match="no likelihoods of labels"):
            asyncio.run(question)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000/v1"}, "must begin with http"),
        ({"url": "file:///etc/passwd"}, "must begin with http"),
        ({"url": f"https://me:{KEY}@api/v1"}, "must hold no user"),
        ({"url": f"https://api/v1?key={KEY}"}, "must hold no user"),
        ({"api_key_env": KEY}, "not the key itself"),
        ({"extra_body": {"stream": True, "n": 2}}, "must not hold n, stream"),
    ],
)
def test_a_server_that_cannot_be_meant_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        OpenAIServerConfig(**{"url": "http://127.0.0.1:8000/v1", "model": "teacher"} | settings)
    (error,) = caught.value.errors()  # what `load_config` shows of it
    assert message in error["msg"] and KEY not in error["msg"]


def test_a_slash_at_the_urls_end_makes_no_difference() -> None:
    assert OpenAIServerConfig(url="http://127.0.0.1:8000/v1/", model="teacher").url == "http://127.0.0.1:8000/v1"
