"""What every response has, whoever made it: a request id, the model's version, the time it took, and headers that keep browsers careful.

Outermost of all, so that refusals and failures have them too. One line of log a request: id, key's name, route, status, time; no bodies, no
file names, no paths that a client has made up. And each is counted (`serve.metrics`).
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.metrics import NO_ROUTE, Metrics, method_of
from serve.problems import problem, unexpected

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
MODEL_VERSION = "X-Model-Version"

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
"""What may go into a line of log."""

_CAREFUL = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Envelope:
    """ASGI middleware. The request's id and when it came (`time.perf_counter`) stand in the scope's state as `request_id` and `began`, and
    a dictionary `timing_s`, in which whoever works on it leaves the seconds of each phase: refusals tell them, too.

    With `proxy_adds_id` the id is that of the request's X-Request-ID, which Ray Serve's proxy makes unless the client has sent one, puts
    into its own log, and adds to the response. Else no client chooses it.
    """

    def __init__(self, app: ASGIApp, model_version: str, metrics: Metrics, proxy_adds_id: bool = False) -> None:
        self.app = app
        self._model_version = model_version
        self._metrics = metrics
        self._proxy_adds_id = proxy_adds_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "") if self._proxy_adds_id else ""
        request_id = given if _PLAIN_ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        started = time.perf_counter()
        timing_s: dict[str, float] = {}
        state |= {"request_id": request_id, "began": started, "timing_s": timing_s}
        status: int | None = None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if not self._proxy_adds_id:
                    headers[REQUEST_ID] = request_id
                headers[MODEL_VERSION] = self._model_version
                phases = {"total": time.perf_counter() - started, **timing_s}
                headers["Server-Timing"] = ", ".join(f"{phase};dur={1000 * seconds:.1f}" for phase, seconds in phases.items())
                for name, value in _CAREFUL.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except Exception as error:  # whatever it was, the client is told nothing of it, and the log all
            logger.error("failed request_id=%s", request_id, exc_info=error)
            if status is None:
                body = unexpected()
                await problem(body.status, body.code, body.detail)(scope, receive, send_marked)
        finally:
            route, method = _route(scope), method_of(scope["method"])
            key = getattr(state.get("key"), "name", "none")
            took_s = time.perf_counter() - started
            self._metrics.request(route, method, status, took_s)
            logger.info(
                "answered request_id=%s key=%s method=%s route=%s status=%s ms=%.1f",
                request_id,
                key,
                method,
                route,
                status,
                1000 * took_s,
            )


def _route(scope: Scope) -> str:
    """The template of the request's route, also of one that was refused before it got there."""
    route = scope.get("route")
    if route is None:
        route = next((each for each in scope["app"].routes if each.matches(scope)[0] is not Match.NONE), None)
    return getattr(route, "path", NO_ROUTE)
