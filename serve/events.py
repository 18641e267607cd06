"""A rationale while it is written, as server-sent events (WHATWG HTML, 9.2).

    event: start     data: RationaleStart
    event: text      data: TextPiece          as often as there is new text
    event: end       data: RationaleAnswer    the whole text, its sections and gates
    event: problem   data: Problem            instead of `end`, when something failed on the way

What fails before there is anything to read is no event but a problem response, with its status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rbft.api import Problem, RationaleAnswer, RationaleStart, TextPiece
from rbft.errors import RBFTError
from serve.presence import ended, until_gone
from serve.problems import problem_of, unexpected

logger = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"

Said = RationaleStart | TextPiece
_NAMES: dict[type[BaseModel], str] = {RationaleStart: "start", TextPiece: "text", RationaleAnswer: "end", Problem: "problem"}


class EventStream(Response):
    """A response that goes on as long as `work` says something. The client that hangs up cancels `work`."""

    def __init__(self, work: Callable[[Callable[[Said], None]], Awaitable[RationaleAnswer]]) -> None:
        super().__init__()
        self._said: asyncio.Queue[BaseModel | None] = asyncio.Queue()  # as long as a rationale at most
        self._first: BaseModel | None = None
        self._job = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Callable[[Callable[[Said], None]], Awaitable[RationaleAnswer]]) -> None:
        has_begun = False

        def say(said: Said) -> None:
            nonlocal has_begun
            has_begun = True
            self._said.put_nowait(said)

        try:
            self._said.put_nowait(await work(say))
        except Exception as error:
            if not has_begun:
                raise  # where its status can still be told: see `begin`
            if not isinstance(error, RBFTError):
                logger.error("failed while streaming", exc_info=error)
            self._said.put_nowait(problem_of(error) if isinstance(error, RBFTError) else unexpected())
        finally:
            self._said.put_nowait(None)

    async def begin(self) -> None:
        """Wait until there is something to send; raises what went wrong before."""
        try:
            self._first = await self._said.get()
            if self._first is None:
                await self._job
        except BaseException:
            await ended(self._job)
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(until_gone(receive))
        watch.add_done_callback(lambda _: self._job.cancel())
        headers = [(b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()), (b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            said = self._first
            while said is not None:
                body = f"event: {_NAMES[type(said)]}\ndata: {said.model_dump_json()}\n\n"
                await send({"type": "http.response.body", "body": body.encode(), "more_body": True})
                said = await self._said.get()
            await send({"type": "http.response.body", "body": b""})
        finally:
            await ended(self._job, watch)
