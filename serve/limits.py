"""What a request may cost: bytes counted while they are read, and a bounded queue before the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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


class BodyLimit:
    """ASGI middleware: POST bodies are at most `max_bytes` long (JSON less), whatever their headers say, and there within `timeout_s`.

    Starlette's own RequestBodyLimitMiddleware does the counting too, but answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self._too_slow = f"the request body was not there within {timeout_s:g} s; send a smaller video, or over a better connection"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        max_bytes = min(MAX_JSON_BYTES, self.max_bytes) if media_type(headers) == JSON else self.max_bytes
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > max_bytes:  # Python reads no number of 5000 digits
            await problem(413, UploadTooLargeError.code, _too_large(max_bytes), _CLOSE)(scope, receive, send)
            return
        await self.app(scope, self._counted(receive, max_bytes), send)

    def _counted(self, receive: Receive, max_bytes: int) -> Receive:
        num_bytes, is_whole = 0, False
        deadline = asyncio.get_running_loop().time() + self.timeout_s

        async def receive_counted() -> Message:
            nonlocal num_bytes, is_whole
            if is_whole:  # what comes now is that the client has gone, and that may take its time
                return await receive()
            # FastAPI lets no other exception than this through the reading of a body.
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, self._too_slow, _CLOSE) from None
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise HTTPException(413, _too_large(max_bytes), _CLOSE)
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
    async def turn(self) -> AsyncIterator[float]:
        """Wait for a turn and hold it; gives the seconds waited. Raises `OverloadedError` at once if the queue is full."""
        if self._slots.locked() and self.num_waiting >= self._max_waiting:
            raise OverloadedError("too many requests wait already; try again later")
        started = time.perf_counter()
        self.num_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield time.perf_counter() - started
        finally:
            self.num_running -= 1
            self._slots.release()
