"""The client that waits."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from tenacity import Retrying

from rbft.api import AttentionAnswer, BatchAnswer, ClassifyAnswer, RationaleAnswer, TaskAnswer
from rbft.client import wire
from rbft.client.events import EventReader
from rbft.client.wire import Answer, Question, Said
from rbft.errors import ClipExpiredError, RBFTError


class Client:
    """Asks one service; threads may share it. Methods raise the error that the service named, and `ServiceError` if it cannot be reached or
    understood.

    A video is the path of a file, which is uploaded, or an address (a string with `://`), which the service fetches where it allows that.
    """

    def __init__(
        self,
        url: str = wire.DEFAULT_URL,
        key: str | None = None,
        *,
        timeout_s: float = wire.DEFAULT_TIMEOUT_S,
        max_retries: int = wire.DEFAULT_RETRIES,
    ) -> None:
        self.url = url
        """Of the service."""
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=wire.headers(key))
        self._max_retries = max_retries

    def classify(
        self,
        video: str | Path,
        context: str | None = None,
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        with_rationale: bool = False,
    ) -> ClassifyAnswer:
        """Label and probabilities of `video`; the options are those of `POST /v1/classify`."""
        return self._ask(wire.ask_label(video, context, threshold, top_k, with_rationale), ClassifyAnswer)

    def classify_many(
        self, paths: Sequence[str | Path], context: str | None = None, *, threshold: float | None = None, top_k: int | None = None
    ) -> list[ClassifyAnswer | RBFTError]:
        """Of each of `paths`, in their order, its answer or the error that the service named; sent as few requests as the service's limits
        allow. Raises what makes a whole request fail."""
        limits = (self.task()).limits
        found: list[ClassifyAnswer | RBFTError] = []
        for some in wire.batches(paths, limits):
            answer = self._ask(wire.ask_labels(some, context, threshold, top_k), BatchAnswer)
            found += wire.read_items(self.url, answer, len(some))
        return found

    def rationale(self, video: str | Path | None = None, context: str | None = None, *, video_id: str | None = None) -> RationaleAnswer:
        """What the model sees in the video of an earlier answer's `video_id`, or in `video`.

        With both, the video is sent only if the service does not have the video any more.
        """
        try:
            return self._ask(wire.ask_why(video, video_id, context), RationaleAnswer)
        except ClipExpiredError:
            if video is None:
                raise
            return self._ask(wire.ask_why(video, None, context), RationaleAnswer)

    def stream_rationale(
        self, video: str | Path | None = None, context: str | None = None, *, video_id: str | None = None
    ) -> Generator[Said, None, None]:
        """`rationale` while it is written. Closing the generator hangs up, which ends it in the service, too."""
        has_begun = False
        try:
            with closing(self._stream(wire.ask_why(video, video_id, context, streamed=True))) as stream:
                for said in stream:
                    has_begun = True
                    yield said
        except ClipExpiredError:
            if video is None or has_begun:
                raise
            yield from self._stream(wire.ask_why(video, None, context, streamed=True))

    def attention(self, video: str | Path | None = None, context: str | None = None, *, video_id: str | None = None) -> AttentionAnswer:
        """Where the model looks on the video of an earlier answer's `video_id`, or of `video`; both are as in `rationale`. Raises
        `NotOfferedError` where the service does not read attention."""
        try:
            return self._ask(wire.ask_where(video, video_id, context), AttentionAnswer)
        except ClipExpiredError:
            if video is None:
                raise
            return self._ask(wire.ask_where(video, None, context), AttentionAnswer)

    def task(self) -> TaskAnswer:
        """Labels, prompts, model version and limits of the service."""
        return self._ask(Question("GET", "/v1/task"), TaskAnswer)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: Question, kind: type[Answer]) -> Answer:
        return Retrying(**wire.retrying(self._max_retries))(self._ask_once, question, kind)

    def _ask_once(self, question: Question, kind: type[Answer]) -> Answer:
        with question.sendable() as arguments, wire.reaching(self.url):
            response = self._http.send(self._http.build_request(**arguments))
        return wire.read_answer(self.url, response, kind)

    def _stream(self, question: Question) -> Generator[Said, None, None]:
        response = Retrying(**wire.retrying(self._max_retries))(self._open, question)
        events = EventReader()
        with closing(response):
            pieces = response.iter_bytes()
            while (piece := self._next(pieces)) is not None:
                for name, data in events.feed(piece):
                    said = wire.read_event(self.url, name, data)
                    if said is not None:
                        yield said
                    if isinstance(said, RationaleAnswer):
                        return
        raise wire.cut_short(self.url)

    def _open(self, question: Question) -> httpx.Response:
        """A response whose events are still to come."""
        with question.sendable() as arguments, wire.reaching(self.url):
            response = self._http.send(self._http.build_request(**arguments), stream=True)
            if response.is_success:
                return response
            response.read()
        raise wire.refusal(self.url, response)

    def _next(self, pieces: Iterator[bytes]) -> bytes | None:
        """The next bytes of a stream. What breaks in the middle is not tried again: half of the text has been told."""
        try:
            return next(pieces, None)
        except httpx.TransportError:
            raise wire.cut_short(self.url) from None
