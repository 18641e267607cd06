"""What Serve's HTTP proxy says when the replica that had a request has died. It runs in the proxy, where `PROXY_SETTING` names it."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbft.errors import EngineGoneError
from serve.problems import problem

PROXY_SETTING = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}
"""For the environment in which Ray is started."""


class NoReplicaLeft:
    """ASGI middleware: a request that nobody has answered gets a 503 that says when to come again, where Serve would say 500.

    What fails in a replica that lives has its answer from there (`serve.envelope`), 500 too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        await self.app(scope, receive, send_noted)
        if not has_begun:
            detail = "the replica that had this request is gone, and is being replaced; try again later"
            await problem(503, EngineGoneError.code, detail)(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve's proxy calls."""
    return [Middleware(NoReplicaLeft)]
