"""Who is let in: with keys, whoever brings one; without, this machine only."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rbft.config import is_loopback
from rbft.errors import UnauthorizedError
from rbft.keys import Key, KeyRing
from serve.page import PAGE_PATHS
from serve.problems import problem

OPEN_PATHS = frozenset(("/healthz", "/readyz")) | PAGE_PATHS
"""What may be read without a key. A load balancer has none; it learns whether the service works, and, as from every response, which model
it is. A browser has none before the page has asked for it; the page is the same for everybody and tells nothing of the service."""

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""What a proxy adds to a request that it passes on for somebody else."""

_NO_KEYS = Key("none", "")
"""Whose requests are where the service has no keys."""


class KeyGate:
    """ASGI middleware: a request for any path, known or not, needs a key of `ring`, unless it reads one of `OPEN_PATHS`. The key is left
    in the scope's state.

    Without a ring only this machine is answered: its address, and its name in the Host header, so that neither a proxy that listens more
    widely than it was told nor a page in a browser that has its own name point here (DNS rebinding) gets in. Nor does another site's page
    that posts here blindly: browsers say so in Sec-Fetch-Site, and older ones in Origin. Nor whoever comes through a proxy that says so: it
    wants keys.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None) -> None:
        self.app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and scope["path"] in OPEN_PATHS and scope["method"] in ("GET", "HEAD")
        if scope["type"] == "lifespan" or is_open:
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # A WebSocket, which no route takes: refused before it is accepted.
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        if self._ring is None:
            if not _is_local(scope, headers):
                detail = "this service has no keys, so it answers its own machine and page only; start it with serve.keys to let others in"
                await problem(403, UnauthorizedError.code, detail)(scope, receive, send)
                return
            key = _NO_KEYS
        else:
            scheme, _, presented = headers.get("authorization", "").partition(" ")
            found = self._ring.match(presented.strip()) if scheme.lower() == "bearer" else None
            if found is None:
                detail = "send a key of this service as the header `Authorization: Bearer KEY`; whoever runs it makes one"
                await problem(401, UnauthorizedError.code, detail, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
            key = found
        scope.setdefault("state", {})["key"] = key
        await self.app(scope, receive, send)


def _is_local(scope: Scope, headers: Headers) -> bool:
    client: tuple[str, int] | None = scope.get("client")
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    is_from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    origin = headers.get("origin")
    is_from_elsewhere |= origin is not None and origin.partition("://")[2].lower() != host.lower()  # "null" too, of a page without one
    is_forwarded = any(header in headers for header in _FORWARDED)
    return client is not None and is_loopback(client[0]) and is_loopback(name) and not (is_from_elsewhere or is_forwarded)
