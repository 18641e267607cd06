"""What becomes of a request once it is in: its turn, its deadline, the clip it is about, what is answered, what is kept.

No HTTP here beyond the upload itself, and no engine: whatever answers is a `Classifier`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from fastapi import UploadFile

from rbft.api import (
    AttentionAnswer,
    CalibrationFacts,
    ClassifyAnswer,
    Frame,
    FramesAnswer,
    ModelVersion,
    RationaleAnswer,
    RationaleStart,
    TextPiece,
    VideoFacts,
)
from rbft.config import ServeConfig
from rbft.errors import EngineError, NotOfferedError, RBFTError, RequestTimeoutError, UrlRefusedError
from rbft.evaluation.figures import frame_images
from rbft.records import Clip, VideoSpec
from rbft.task import Task
from serve.attention import MAX_SHOWN_HEIGHT, Looker
from serve.clips import ClipCache, Seen, keeper_of
from serve.events import Said
from serve.fetching import Fetcher
from serve.limits import Queue
from serve.links import Link
from serve.problems import problem_of
from serve.upload import received

_MAX_SHOWING = 2
"""Videos whose frames are made into pictures at once: a tenth of a second of a core at most, each, beside the engine."""

_MAX_LOOKING = 2
"""Videos whose attention is read at once: while one is in the model, another is being decoded. More would only take decoders from those
that are to be classified."""


_MAX_FETCHING = 8
"""Videos that are fetched at once. It is done before their turn, so that a host that takes its time keeps no place of others."""

NUM_QUEUES = 5
"""Of a `Service`, each with room for `max_queued_requests`: a full one must not keep requests out of the others."""

Video = UploadFile | Link
"""How a video comes in, if not by the id of one that is known."""

Observe = Callable[[str, float], None]
"""Told the name of a phase and its seconds."""


def _unobserved(phase: str, seconds: float) -> None: ...


class Classifier(Protocol):
    """What answers. Methods raise `VideoError`, `EngineError` and, when it can answer no more, `EngineGoneError`."""

    @property
    def task(self) -> Task: ...

    @property
    def version(self) -> ModelVersion: ...

    @property
    def rationale_task(self) -> Task:
        """As which the model that writes the rationales is asked for them."""
        ...

    @property
    def rationale_version(self) -> ModelVersion:
        """That model's; `version` if it is the same."""
        ...

    @property
    def spec(self) -> VideoSpec: ...

    @property
    def lineage(self) -> dict[str, Any]:
        """Of the task card."""
        ...

    @property
    def calibration(self) -> CalibrationFacts | None: ...

    async def look(self, path: Path) -> Clip:
        """The video in the file `path`, decoded."""
        ...

    async def classify(self, clip: Clip, context: str | None, threshold: float | None) -> ClassifyAnswer:
        """Label and probabilities of all labels, the likeliest first. `threshold` is as in `ClassifyAnswer`, None as the model has it."""
        ...

    def explain(self, seen: Seen) -> AsyncGenerator[str | RationaleAnswer, None]:
        """New pieces of text, and at last the whole. Closing it ends the request in the engine."""
        ...

    async def check_health(self) -> None: ...


class Others(Protocol):
    """The other replicas of a service."""

    @property
    def own_id(self) -> str:
        """By which the others know this one: letters and digits."""
        ...

    async def ask(self, replica: str, method: str, asker: Asker, arguments: tuple[Any, ...], say: Callable[[Said], None]) -> Any:
        """What that method of that replica's `Service` gives, and raises; `ClipExpiredError` if the replica is gone."""
        ...


@dataclass
class Asker:
    """Whose request this is, and what it has cost so far."""

    request_id: str
    owner: str
    """What the clips it leaves behind belong to."""
    began: float = field(default_factory=time.perf_counter)
    """When the request came, by `time.perf_counter`."""
    timing_s: dict[str, float] = field(default_factory=dict)
    """Phase -> seconds. It begins with `receive`, the time until this was made."""
    observe: Observe = _unobserved
    """Told of each phase that ends here."""

    def __post_init__(self) -> None:
        self.timing_s["receive"] = time.perf_counter() - self.began

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Count the seconds in the context as those of `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.timing_s[name] = self.timing_s.get(name, 0.0) + seconds
            self.observe(name, seconds)

    def timing(self) -> dict[str, float]:
        return {**self.timing_s, "total": time.perf_counter() - self.began}


def _likeliest(answer: ClassifyAnswer, top_k: int | None) -> dict[str, float]:
    """The `top_k` highest probabilities, and that of the answered label: with a threshold it may be none of them."""
    first = list(answer.probabilities)[:top_k]
    return {label: probability for label, probability in answer.probabilities.items() if label in (*first, answer.label)}


class Service:
    """Answers requests with `classifier`: at most `max_classifying` classifications and `max_explaining` rationales at once. Without a
    `looker` nobody is told where the model looks, without a `fetcher` no address is taken."""

    def __init__(
        self,
        classifier: Classifier,
        config: ServeConfig,
        max_classifying: int,
        max_explaining: int,
        looker: Looker | None = None,
        fetcher: Fetcher | None = None,
        others: Others | None = None,
    ) -> None:
        self.classifier = classifier
        self._looker = looker
        self._fetcher = fetcher
        self._others = others
        self.timeout_s = config.request_timeout_s
        self.clips = ClipCache(config.clip_cache_bytes, config.clip_cache_s, keeper=others.own_id if others else "")
        # A queue each: rationales take seconds, and those that wait must not stand before a classification.
        self._classifying = Queue(max_classifying, config.max_queued_requests)
        self._explaining = Queue(max_explaining, config.max_queued_requests)
        self._showing = Queue(_MAX_SHOWING, config.max_queued_requests)
        self._looking = Queue(_MAX_LOOKING, config.max_queued_requests)
        self._fetching = Queue(_MAX_FETCHING, config.max_queued_requests)
        self.queues = {
            "classifying": self._classifying,
            "explaining": self._explaining,
            "showing": self._showing,
            "looking": self._looking,
            "fetching": self._fetching,
        }

    async def classify(
        self,
        asker: Asker,
        video: Video,
        context: str | None,
        *,
        threshold: float | None,
        top_k: int | None,
        with_rationale: bool,
        until: float | None = None,
    ) -> ClassifyAnswer:
        """The answer about `video`. Raises what `Classifier` does, `OverloadedError` and `RequestTimeoutError`; for an address also what
        `Fetcher.fetched` does. A rationale that fails costs the answer nothing, and is told of in it. `until`, by
        the event loop's clock, is another deadline than that of a request."""
        until = until or asyncio.get_running_loop().time() + self.timeout_s
        async with self._deadline(until), self._at_hand(asker, video) as file, self._turn(self._classifying, asker):
            clip = await self._look(asker, file)
            async with asker.phase("engine"):
                answer = await self.classifier.classify(clip, context, threshold)
        seen = Seen(clip, context, answer.label)
        video_id = self.clips.put(asker.owner, seen)
        rationale = failed = None
        if with_rationale:
            try:
                async with self._deadline(until), asker.phase("rationale"), self._explaining.turn():
                    rationale = await self._explained(asker, seen, video_id, lambda _: None)
            except RBFTError as error:
                failed = problem_of(error)
        return answer.model_copy(
            update={
                "probabilities": _likeliest(answer, top_k),
                "request_id": asker.request_id,
                "video_id": video_id,
                "video_expires_s": self.clips.max_age_s if video_id else None,
                "rationale": rationale,
                "rationale_problem": failed,
                "timing_s": asker.timing(),
            }
        )

    async def explain(
        self, asker: Asker, video: Video | str, context: str | None, say: Callable[[Said], None] = lambda _: None
    ) -> RationaleAnswer:
        """The rationale about a video or that of an id; `say` is told the text while it is written.

        An id brings the context that came with its video unless `context` is another. Raises as `classify` does, and `ClipExpiredError`.
        """
        async with self._deadline():
            if isinstance(video, str) and (replica := self._elsewhere(video)):
                answered: RationaleAnswer = await self._ask(replica, "explain", asker, (video, context), say)
                return answered
            async with self._seen(self._explaining, asker, video, context) as (seen, video_id), asker.phase("engine"):
                answer = await self._explained(asker, seen, video_id, say)
        return answer.model_copy(update={"timing_s": asker.timing()})

    async def look_where(self, asker: Asker, video: Video | str, context: str | None) -> AttentionAnswer:
        """Where the model looks on a video or that of an id; raises as `explain` does, and `NotOfferedError`."""
        if self._looker is None:
            raise NotOfferedError("this service does not read attention; start it with serve.attention: true")
        async with self._deadline():
            if isinstance(video, str) and (replica := self._elsewhere(video)):
                answered: AttentionAnswer = await self._ask(replica, "look_where", asker, (video, context))
                return answered
            async with self._seen(self._looking, asker, video, context) as (seen, video_id), asker.phase("attention"):
                looks = await self._looker.look(seen.clip, seen.context)
        return AttentionAnswer(
            heatmaps=looks.heatmaps,
            video_share=looks.video_share,
            request_id=asker.request_id,
            video_id=video_id,
            model=self.classifier.version,
            video=facts(seen.clip),
            timing_s=asker.timing(),
        )

    async def show(self, asker: Asker, video_id: str) -> FramesAnswer:
        """The frames that the model saw of the video of that id. Raises `ClipExpiredError`, `OverloadedError` and `RequestTimeoutError`."""
        async with self._deadline():
            if replica := self._elsewhere(video_id):
                shown: FramesAnswer = await self._ask(replica, "show", asker, (video_id,))
                return shown
            clip = self.clips.get(asker.owner, video_id).clip
            async with self._turn(self._showing, asker), asker.phase("encode"):
                images = await asyncio.to_thread(frame_images, clip, max_frames=clip.num_frames, max_height=MAX_SHOWN_HEIGHT)
        return FramesAnswer(
            frames=tuple(Frame(time_s=image.timestamp_s, uri=image.uri, width=image.width, height=image.height) for image in images),
            request_id=asker.request_id,
            video_id=video_id,
            timing_s=asker.timing(),
        )

    async def _explained(self, asker: Asker, seen: Seen, video_id: str | None, say: Callable[[Said], None]) -> RationaleAnswer:
        marks = {"request_id": asker.request_id, "video_id": video_id}
        start = RationaleStart(**marks, model=self.classifier.rationale_version, video=facts(seen.clip))
        has_begun = False
        async with aclosing(self.classifier.explain(seen)) as pieces:
            async for piece in pieces:
                if not has_begun:
                    say(start)
                    has_begun = True
                if isinstance(piece, RationaleAnswer):
                    return piece.model_copy(update=marks)
                say(TextPiece(text=piece))
        raise EngineError("the engine ended without an answer")

    def _elsewhere(self, video_id: str) -> str | None:
        """The other replica that has given that id; None if it was this one, or nobody says."""
        keeper = keeper_of(video_id)
        return None if self._others is None or keeper in ("", self._others.own_id) else keeper

    async def _ask(
        self, replica: str, method: str, asker: Asker, arguments: tuple[Any, ...], say: Callable[[Said], None] = lambda _: None
    ) -> Any:
        """The answer of another replica, which has kept the video and whose engine has read it; with the time it took from here."""
        assert self._others is not None
        answer = await self._others.ask(replica, method, asker, arguments, say)
        return answer.model_copy(update={"timing_s": answer.timing_s | asker.timing()})

    @asynccontextmanager
    async def _seen(self, queue: Queue, asker: Asker, video: Video | str, context: str | None) -> AsyncIterator[tuple[Seen, str | None]]:
        """A turn in `queue` with a video, decoded and kept, or that of an id; and its id, if it is kept."""
        if isinstance(video, str):
            known = self.clips.get(asker.owner, video)  # before it waits: an id that is known now stays good
            async with self._turn(queue, asker):
                yield (known if context is None else replace(known, context=context)), video
        else:
            async with self._at_hand(asker, video) as file, self._turn(queue, asker):
                seen = Seen(await self._look(asker, file), context)
                yield seen, self.clips.put(asker.owner, seen)

    @asynccontextmanager
    async def _at_hand(self, asker: Asker, video: Video) -> AsyncIterator[UploadFile | Path]:
        """The video on this machine: an upload as it is, what is elsewhere fetched."""
        if not isinstance(video, Link):
            yield video
            return
        if self._fetcher is None:
            raise UrlRefusedError("this service fetches no videos; send the file, or start it with serve.urls")
        async with AsyncExitStack() as files:
            async with self._fetching.turn(), asker.phase("fetch"):
                path = await files.enter_async_context(self._fetcher.fetched(video))
            yield path

    async def _look(self, asker: Asker, file: UploadFile | Path) -> Clip:
        async with asker.phase("decode"), nullcontext(file) if isinstance(file, Path) else received(file) as path:
            return await self.classifier.look(path)

    @asynccontextmanager
    async def _deadline(self, until: float | None = None) -> AsyncIterator[None]:
        deadline = asyncio.timeout(self.timeout_s) if until is None else asyncio.timeout_at(until)
        try:
            async with deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise RequestTimeoutError(f"no answer within {self.timeout_s:g} s; send a shorter video or try again later") from None

    @asynccontextmanager
    async def _turn(self, queue: Queue, asker: Asker) -> AsyncIterator[None]:
        async with AsyncExitStack() as places:
            async with asker.phase("queue"):
                await places.enter_async_context(queue.turn())
            yield


def facts(clip: Clip) -> VideoFacts:
    """What the model sees of a video."""
    return VideoFacts(num_frames=clip.num_frames, fps=clip.fps, duration_s=clip.source_duration_s)
