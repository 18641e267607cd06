"""What a request may cost: bytes counted while they are read, and a bounded queue before the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbft.errors import OverloadedError, UploadTooLargeError
from serve.problems import problem
from serve.upload import JSON, media_type

_CLOSE = {"Connection": "close"}
"""With an answer to a body that was not read to its end: what still comes is no next request."""


MAX_JSON_BYTES = 256 << 10
"""More than the longest fields with every character escaped. It is held and read at once."""

_NO_ROOM = "the service holds as many bytes of other requests as it may; try again later"


@dataclass
class _Held:
    """What there is of a body."""

    num_bytes: int = 0


class BodyLimit:
    """ASGI middleware: POST bodies are at most `max_bytes` long (JSON less), whatever their headers say, and there within `timeout_s`;
    those of all requests under way, which lie in memory or in the temporary folder, at most `max_bytes_in_flight`.

    Starlette's own RequestBodyLimitMiddleware does the counting too, but answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float, max_bytes_in_flight: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self._max_bytes_in_flight = max_bytes_in_flight
        self._num_bytes_in_flight = 0
        self._too_slow = f"the request body was not there within {timeout_s:g} s; send a smaller video, or over a better connection"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        max_bytes = min(MAX_JSON_BYTES, self.max_bytes) if media_type(headers) == JSON else self.max_bytes
        length = headers.get("content-length", "0")
        declared = int(length[:20]) if length.isdecimal() else 0  # Python reads no number of 5000 digits
        if declared > max_bytes:
            await problem(413, UploadTooLargeError.code, _too_large(max_bytes), _CLOSE)(scope, receive, send)
            return
        if self._num_bytes_in_flight + declared > self._max_bytes_in_flight:
            await problem(503, OverloadedError.code, _NO_ROOM, _CLOSE)(scope, receive, send)
            return
        body = _Held()
        try:
            await self.app(scope, self._counted(receive, max_bytes, body), send)
        finally:
            self._num_bytes_in_flight -= body.num_bytes

    def _counted(self, receive: Receive, max_bytes: int, body: _Held) -> Receive:
        is_whole = False
        deadline = asyncio.get_running_loop().time() + self.timeout_s

        async def receive_counted() -> Message:
            nonlocal is_whole
            if is_whole:  # what comes now is that the client has gone, and that may take its time
                return await receive()
            # FastAPI lets no other exception than this through the reading of a body.
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, self._too_slow, _CLOSE) from None
            num_bytes = len(message.get("body", b""))
            body.num_bytes += num_bytes
            self._num_bytes_in_flight += num_bytes
            if body.num_bytes > max_bytes:
                raise HTTPException(413, _too_large(max_bytes), _CLOSE)
            if self._num_bytes_in_flight > self._max_bytes_in_flight:
                raise HTTPException(503, _NO_ROOM, _CLOSE)
            is_whole = not message.get("more_body", False)
            return message

        return receive_counted


def _too_large(max_bytes: int) -> str:
    return f"the request body is larger than {max_bytes} bytes; send a shorter or smaller video"


class Queue:
    """At most `max_running` at once, at most `max_waiting` behind them; the next one is told to come back later."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._slots = asyncio.Semaphore(max_running)
        self._max_waiting = max_waiting
        self.num_running = 0
        self.num_waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises `OverloadedError` at once if the queue is full."""
        if self._slots.locked() and self.num_waiting >= self._max_waiting:
            raise OverloadedError("too many requests wait already; try again later")
        self.num_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._slots.release()
