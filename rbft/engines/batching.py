"""Requests of many callers to batches of one worker: a queue bounded by tokens, which is what encoded clips take memory by."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rbft.engines.base import Generated, Sampling
from rbft.errors import EngineGoneError
from rbft.models.chat import EncodedSample


@dataclass(eq=False)
class Request:
    """An encoded question, what is asked about it, and what is known of the answer."""

    prompt: EncodedSample
    answers: dict[str, list[int]]
    """Label -> token ids to score as the answer, the end token last; empty if none are to be scored."""
    sampling: Sampling | None
    """How the text is drawn; None if none is wanted."""
    done: Future[None] = field(default_factory=Future)
    """Ends when `logprobs` and `generated` are there, or with the request's error."""
    logprobs: dict[str, float] = field(default_factory=dict)
    generated: Generated | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.input_ids_L)


class BatchQueue:
    """First in, first out, between threads that put and one that takes.

    A batch has at most `max_requests` requests and, padded to its longest, `max_tokens` prompt tokens (or one longer request). About as
    many wait: a `put` beyond that waits itself, so that callers cannot fill the memory with encoded clips.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._waiting: deque[Request] = deque()
        self._num_tokens = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, request: Request) -> None:
        """Add `request` once there is room. Raises `EngineGoneError` if the queue is closed, also while waiting."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._num_tokens < self._max_tokens)
            if self._is_closed:
                raise EngineGoneError("the engine has been closed")
            self._waiting.append(request)
            self._num_tokens += request.num_prompt_tokens
            self._changed.notify_all()

    def take(self) -> list[Request]:
        """The longest batch that waits, as soon as any request does; empty once the queue is closed. Cancelled requests are left out."""
        batch: list[Request] = []
        with self._changed:
            while not batch and not self._is_closed:
                self._changed.wait_for(lambda: self._is_closed or self._waiting)
                while self._waiting and self._fits(batch, self._waiting[0]):
                    request = self._waiting.popleft()
                    self._num_tokens -= request.num_prompt_tokens
                    if request.done.set_running_or_notify_cancel():
                        batch.append(request)
                self._changed.notify_all()
        return batch

    def close(self) -> None:
        """Refuse what comes from now on and fail what waits with `EngineGoneError`; idempotent."""
        with self._changed:
            self._is_closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for request in waiting:
            if request.done.set_running_or_notify_cancel():
                request.done.set_exception(EngineGoneError("the engine was closed before it came to this request"))

    def _fits(self, batch: Sequence[Request], request: Request) -> bool:
        longest = max(other.num_prompt_tokens for other in (*batch, request))
        return not batch or (len(batch) < self._max_requests and longest * (len(batch) + 1) <= self._max_tokens)
