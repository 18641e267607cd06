"""Many videos in one request: each has its own turn, its own answer or problem, and its own time limit within that of the whole."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence

from fastapi import UploadFile

from rbft.api import BatchAnswer, BatchItem
from rbft.errors import RBFTError
from serve.presence import ended
from serve.problems import problem_of, status_of
from serve.service import Asker, Service

_AT_ONCE = 4
"""Videos of one request that wait or are looked at: enough to keep decoders and engine busy, few beside the requests of others."""


async def classify_many(
    service: Service, asker: Asker, uploads: Sequence[UploadFile], context: str | None, *, threshold: float | None, top_k: int | None
) -> BatchAnswer:
    """The answers in the order of `uploads`. What befalls one of them is its own; a mistake of ours (500) is that of all."""
    places = asyncio.Semaphore(_AT_ONCE)
    until = asyncio.get_running_loop().time() + service.timeout_s

    async def item(upload: UploadFile) -> BatchItem:
        async with places:
            own = copy.copy(asker)
            own.timing_s = dict(asker.timing_s)
            try:
                answer = await service.classify(own, upload, context, threshold=threshold, top_k=top_k, with_rationale=False, until=until)
            except RBFTError as error:
                if status_of(error) == 500:
                    raise
                return BatchItem(status=status_of(error), problem=problem_of(error))
            return BatchItem(status=200, answer=answer)

    tasks = [asyncio.ensure_future(item(upload)) for upload in uploads]
    try:
        items = await asyncio.gather(*tasks)
    finally:
        await ended(*tasks)
    return BatchAnswer(items=tuple(items), request_id=asker.request_id, timing_s=asker.timing())
