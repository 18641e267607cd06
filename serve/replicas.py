"""Replicas among themselves: what is asked about a video goes to the replica that keeps it, whose engine has it in its prefix cache too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError

from rbft.errors import ClipExpiredError, EngineGoneError, OverloadedError, RBFTError
from serve.events import Said
from serve.presence import ended
from serve.routing import REPLICA
from serve.service import Asker, Observe, Service


class OtherReplicas:
    """See `serve.service.Others`. To be built in a replica, whose class has `answered` as its method `ask`."""

    def __init__(self) -> None:
        context = serve.get_replica_context()
        self.own_id = context.replica_id.unique_id
        self._names = context.deployment, context.app_name
        self._handle: Any = None

    async def ask(self, replica: str, method: str, asker: Asker, arguments: tuple[Any, ...], say: Callable[[Said], None]) -> Any:
        if self._handle is None:  # where there is one replica it is never needed
            self._handle = serve.get_deployment_handle(*self._names).options(stream=True)
        call = self._handle.ask.remote(method, asker.request_id, asker.owner, arguments, **{REPLICA: replica})
        has_begun = False
        try:
            async for has_ended, piece in call:
                if has_ended:
                    return piece
                say(piece)
                has_begun = True
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RBFTError) else error) from None
        except BackPressureError:
            raise OverloadedError("too many requests wait already; try again later") from None
        except RayError:  # it died, or is out of reach
            if has_begun:
                raise EngineGoneError("the replica that was answering is gone; upload the video again") from None
            raise expired() from None
        finally:
            call.cancel()  # where nobody waits any more; nothing if it has ended
        raise EngineGoneError("the replica that keeps the video ended without an answer")


async def answered(
    service: Service, observe: Observe, method: str, request_id: str, owner: str, arguments: tuple[Any, ...]
) -> AsyncGenerator[Any, None]:
    """What that method of `service` says, piece by piece as (False, piece), and at last (True, its answer). `observe` is as in `Asker`."""
    said: asyncio.Queue[Said | None] = asyncio.Queue()
    options = {"say": said.put_nowait} if method == "explain" else {}
    job = asyncio.ensure_future(getattr(service, method)(Asker(request_id, owner, observe=observe), *arguments, **options))
    job.add_done_callback(lambda _: said.put_nowait(None))
    try:
        while (piece := await said.get()) is not None:
            yield False, piece
        yield True, await job
    finally:
        await ended(job)


def expired() -> ClipExpiredError:
    return ClipExpiredError("the replica that kept the video of this id is gone; upload the video again")
