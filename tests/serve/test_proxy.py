"""What Serve's proxy says, made by Serve's own functions, and what a client gets of it. The real proxy is in
`tests/integration/test_replicas.py`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from ray.serve._private.common import DeploymentID
from ray.serve._private.http_util import (
    RequestIdMiddleware,
    convert_object_to_asgi_messages,
    get_http_response_status,
    send_http_response_on_exception,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbft.api import Problem
from rbft.config import ServeConfig
from serve.app import build_app
from serve.problems import MEDIA_TYPE
from serve.proxy import ProxyProblems
from tests.serve.scripted import ScriptedClassifier, raising


def _saying(*messages: Message) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def _failing(error: BaseException) -> ASGIApp:
    return _saying(*send_http_response_on_exception(get_http_response_status(error, 7.0, "an id"), response_started=False))


def _asked(app: ASGIApp, path: str = "/v1/task", **options: Any) -> httpx.Response:
    """As Serve's proxy puts its middleware around what it does."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyProblems(RequestIdMiddleware(app)), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(options.pop("method", "GET"), path, **options)

    return asyncio.run(ask())


def _check(response: httpx.Response, status: int, code: str) -> None:
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.status, problem.code) == (status, status, code)
    assert len(response.headers.get_list("x-request-id")) == 1 and int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (BackPressureError(3, 0, 503, 17.0), 503, "overloaded", "17"),
        (BackPressureError(3, 0, 429, 17.0), 503, "overloaded", "17"),
        (DeploymentUnavailableError(DeploymentID("classifier", "rbft")), 503, "engine_gone", "5"),
        (TimeoutError(), 504, "request_timeout", "5"),
        (ValueError("secret"), 503, "engine_gone", "5"),
    ],
)
def test_a_request_that_no_replica_has_answered_gets_a_problem_and_when_to_come_again(
    error: Exception, status: int, code: str, retry_after: str
) -> None:
    response = _asked(_failing(error), headers={"X-Request-ID": "one-of-mine"})
    _check(response, status, code)
    assert response.headers["retry-after"] == retry_after and response.headers["x-request-id"] == "one-of-mine"
    assert "secret" not in response.text and "rbft" not in response.text
    _check(_asked(_failing(error)), status, code)


def test_where_nothing_is_deployed_yet_that_is_a_problem_too() -> None:
    _check(_asked(_saying(*convert_object_to_asgi_messages("Path '/' not found. Ping /-/routes", status_code=404))), 404, "request")


def test_nobody_is_told_the_routes_and_a_load_balancer_is_told_of_health() -> None:
    routes = _saying(*convert_object_to_asgi_messages({"/": "rbft"}))
    for method in ("GET", "HEAD", "POST"):
        response = _asked(routes, "/-/routes", method=method)
        assert response.status_code == 404 and response.headers["content-type"] == MEDIA_TYPE
    _check(_asked(routes, "/-/routes"), 404, "request")
    draining = _asked(_saying(*convert_object_to_asgi_messages("This node is being drained.", status_code=503)), "/-/healthz")
    assert (draining.status_code, draining.text) == (503, "This node is being drained.")


@pytest.mark.parametrize("act", [None, raising(ValueError("a bug"))])
@pytest.mark.parametrize("path", ["/v1/task", "/readyz", "/v1/none"])
def test_what_the_application_answers_passes_as_it_is(act: Any, path: str) -> None:
    app = build_app(ScriptedClassifier(act), ServeConfig(), 1, 1)

    async def directly() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://127.0.0.1") as http:
            return await http.get(path)

    direct, response = asyncio.run(directly()), _asked(app, path)
    assert (response.status_code, response.content) == (direct.status_code, direct.content)
    assert response.headers.keys() - direct.headers.keys() <= {"x-request-id"} and response.headers["x-model-version"]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_another_applications_words_are_left_to_it(status: int) -> None:
    response = _asked(PlainTextResponse("mine", status))
    assert (response.status_code, response.text) == (status, "mine")


def test_a_stream_passes_piece_by_piece() -> None:
    sent: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            assert len(sent) == number, "each piece is out before the next is made"
            yield b"piece"

    async def send(message: Message) -> None:
        if message.get("body"):
            sent.append(message["body"])

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "path": "/v1/rationale", "headers": []}
    asyncio.run(ProxyProblems(StreamingResponse(pieces(), media_type="text/event-stream"))(scope, receive, send))
    assert sent == [b"piece"] * 3
