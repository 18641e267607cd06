"""The routes. No Ray and no engine here: whatever answers is a `Classifier`.

An upload lies in a temporary file of our naming while it is looked at and is gone when the answer is made; the client's file name is never
used. Not covered: what an answer is made of (`serve.classifier`), how errors look (`serve.problems`).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from fastapi import FastAPI, File, Form, UploadFile

from rbft import __version__
from rbft.api import ClassifyAnswer, Health, Limits, ModelVersion, RationaleAnswer, TaskAnswer
from rbft.config import ServeConfig
from rbft.errors import RBFTError, RequestTimeoutError
from rbft.keys import KeyRing
from rbft.task import Task
from serve.envelope import Envelope
from serve.keys import KeyGate
from serve.limits import BodyLimit, Queue
from serve.problems import answer_with_problems, described

MAX_CONTEXT_CHARACTERS = 8192
"""A long title and transcript; far below the context of the models."""

Upload = Annotated[UploadFile, File(description="the video file")]
Context = Annotated[str | None, Form(max_length=MAX_CONTEXT_CHARACTERS, description="text that comes with the video (title, transcript)")]
Answer = TypeVar("Answer", ClassifyAnswer, RationaleAnswer)


class Classifier(Protocol):
    """What answers. Methods raise `VideoError`, `EngineError` and, when it can answer no more, `EngineGoneError`."""

    @property
    def task(self) -> Task: ...

    @property
    def version(self) -> ModelVersion: ...

    async def classify(self, path: Path, context: str | None) -> ClassifyAnswer: ...

    async def rationale(self, path: Path, context: str | None) -> RationaleAnswer: ...

    async def check_health(self) -> None: ...


def build_app(classifier: Classifier, config: ServeConfig, max_running: int) -> FastAPI:
    """The service around `classifier`, which sees at most `max_running` requests at once."""
    app = FastAPI(title="RB-FT", version=__version__, summary="Video classification with reasons on demand")
    # The last is the outermost: a request without a key is refused before a byte of its body is read.
    app.add_middleware(BodyLimit, max_bytes=config.max_upload_bytes)
    app.add_middleware(KeyGate, ring=None if config.keys is None else KeyRing(config.keys))
    app.add_middleware(Envelope, model_version=classifier.version.fingerprint)
    answer_with_problems(app)
    queue = Queue(max_running, config.max_queued_requests)

    async def answer(upload: UploadFile, ask: Callable[[Path], Awaitable[Answer]]) -> Answer:
        started = time.perf_counter()
        async with _received(upload) as path, _deadline(config.request_timeout_s), queue.turn() as queue_s:
            reply = await ask(path)
        timing_s = {"queue": queue_s, **reply.timing_s, "total": time.perf_counter() - started}
        return reply.model_copy(update={"timing_s": timing_s})

    @app.post("/v1/classify", responses=described(), summary="The label of a video")
    async def classify(video: Upload, context: Context = None) -> ClassifyAnswer:
        return await answer(video, lambda path: classifier.classify(path, context))

    @app.post("/v1/rationale", responses=described(), summary="What the model sees in a video, under the task's headings")
    async def rationale(video: Upload, context: Context = None) -> RationaleAnswer:
        return await answer(video, lambda path: classifier.rationale(path, context))

    @app.get("/v1/task", summary="Labels, prompts, model version and limits")
    async def task() -> TaskAnswer:
        about = classifier.task
        return TaskAnswer(
            name=about.name,
            labels=about.labels,
            question=about.question,
            rationale_prompt=about.rationale_prompt,
            model=classifier.version,
            limits=Limits(
                max_upload_bytes=config.max_upload_bytes,
                max_context_characters=MAX_CONTEXT_CHARACTERS,
                request_timeout_s=config.request_timeout_s,
            ),
        )

    @app.get("/healthz", summary="The process answers")
    async def healthz() -> Health:
        return Health()

    @app.get("/readyz", summary="The engine answers")
    async def readyz() -> Health:
        await classifier.check_health()
        return Health()

    return app


@asynccontextmanager
async def _received(upload: UploadFile) -> AsyncIterator[Path]:
    """The upload as a file for as long as the context lasts. Errors that leave it name "the upload", not a path of this machine."""
    with tempfile.TemporaryDirectory(prefix="rbft-upload-") as folder:
        path = Path(folder) / "video"
        await asyncio.to_thread(_copy, upload, path)
        try:
            yield path
        except RBFTError as error:
            raise type(error)(str(error).replace(str(path), "the upload")) from error


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(upload.file, target, 1 << 20)


@asynccontextmanager
async def _deadline(timeout_s: float) -> AsyncIterator[None]:
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise RequestTimeoutError(f"no answer within {timeout_s:g} s; send a shorter video or try again later") from None
