"""What Serve's HTTP proxy says by itself, no replica having answered, as problems. It runs in the proxy, where `PROXY_SETTING` names it."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbft.errors import EngineGoneError, OverloadedError, RequestError, RequestTimeoutError
from serve.envelope import REQUEST_ID
from serve.problems import RETRY_AFTER_S, problem

PROXY_SETTING = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}
"""For the environment in which Ray is started."""

_ROUTES, _HEALTH = "/-/routes", "/-/healthz"
"""What the proxy answers itself, to anybody: which applications there are, and, for load balancers, whether it takes requests."""

_PROXYS_HEADERS = {"content-type", "retry-after", REQUEST_ID.lower()}
"""All that a response of the proxy's own has (`ray.serve._private.http_util.convert_object_to_asgi_messages`). What an application makes
has at least a Content-Length beside them, and ours its model's version."""

_AGAIN = {"Retry-After": str(RETRY_AFTER_S)}


class ProxyProblems:
    """ASGI middleware: a request that no replica has answered gets a problem with its code, and is told when to come again, where Serve
    says 500 or a line of text. Nobody is told which applications there are.

    What a replica answers passes untouched, 500 too (`serve.envelope`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path == _HEALTH:
            await self.app(scope, receive, send)
            return
        if path == _ROUTES:
            await _say(scope, receive, send, 404, RequestError.code, "there is nothing at this path")
            return
        has_begun = is_replaced = False

        async def send_checked(message: Message) -> None:
            nonlocal has_begun, is_replaced
            if not has_begun and message["type"] == "http.response.start":
                is_replaced = await _replace(scope, receive, send, message["status"], Headers(raw=message["headers"]))
            has_begun = True
            if not is_replaced:
                await send(message)

        await self.app(scope, receive, send_checked)
        if not has_begun:
            detail = "the replica that had this request is gone, and is being replaced; try again later"
            await _say(scope, receive, send, 503, EngineGoneError.code, detail, _AGAIN)


async def _replace(scope: Scope, receive: Receive, send: Send, status: int, headers: Headers) -> bool:
    """Send what belongs in the place of a response that begins so, if that is the proxy's own; whether it was."""
    if not (set(headers) <= _PROXYS_HEADERS and headers.get("content-type", "").startswith("text/plain")):
        return False
    told = {"Retry-After": headers["retry-after"]} if "retry-after" in headers else _AGAIN
    match status:
        case 404:
            await _say(scope, receive, send, 404, RequestError.code, "no application answers at this path, or none does yet")
        case 408:
            await _say(scope, receive, send, 504, RequestTimeoutError.code, "no replica has answered in time; try again later", told)
        case 429 | 503 if "retry-after" in headers:
            detail = "no replica has room for this request, or none is left; try again later"
            await _say(scope, receive, send, 503, OverloadedError.code, detail, told)
        case 429 | 503:
            await _say(
                scope, receive, send, 503, EngineGoneError.code, "there is no replica, and none could be started; try again later", told
            )
        case _:
            return False
    return True


async def _say(
    scope: Scope, receive: Receive, send: Send, status: int, code: str, detail: str, headers: dict[str, str] | None = None
) -> None:
    request_id = Headers(scope=scope).get(REQUEST_ID) or secrets.token_hex(8)  # Serve's own middleware, below this one, has set it
    await problem(status, code, detail, {REQUEST_ID: request_id, **(headers or {})})(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve's proxy calls."""
    return [Middleware(ProxyProblems)]
