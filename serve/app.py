"""The routes: from HTTP to `serve.service` and back. No Ray and no engine here.

Not covered: what an answer is made of (`serve.classifier`), how errors look (`serve.problems`), who is let in (`serve.keys`).
"""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, FastAPI, File, Form, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer

from rbft import __version__
from rbft.api import AttentionAnswer, BatchAnswer, ClassifyAnswer, FramesAnswer, Health, Limits, RationaleAnswer, Sampled, TaskAnswer
from rbft.config import ServeConfig
from rbft.errors import EngineGoneError, NotReadyError
from rbft.keys import KeyRing
from serve import events, examples, page
from serve.attention import Looker
from serve.batch import classify_many
from serve.canary import Readiness
from serve.description import describe_json
from serve.envelope import Envelope
from serve.fetching import Fetcher
from serve.keys import KeyGate
from serve.limits import BodyLimit
from serve.links import MAX_CHARACTERS, Link
from serve.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from serve.metrics import Metrics
from serve.presence import while_connected
from serve.problems import UPLOAD_STATUSES, answer_with_problems, described, described_of
from serve.service import Asker, Classifier, Others, Service
from serve.upload import UploadRoute, route_of_files

logger = logging.getLogger(__name__)

_TOLD_OF_LINEAGE = frozenset(
    ("run", "system", "stage", "fingerprint", "base", "videos", "answers", "seed", "epochs", "num_items", "classes")
)
"""Of what a task card holds: no paths of the machine that trained it, no versions of what runs here."""

MAX_CONTEXT_CHARACTERS = 8192
"""A long title and transcript; far below the context of the models."""

Context = Annotated[str | None, Form(max_length=MAX_CONTEXT_CHARACTERS, description="text that comes with the video (title, transcript)")]
Video = Annotated[UploadFile | None, File(description="the video file")]
Url = Annotated[
    str | None,
    Form(max_length=MAX_CHARACTERS, description="instead: its address, https or in a storage, where this service fetches from it"),
]
VideoId = Annotated[str | None, Form(max_length=64, description="instead: that of a video classified a short while ago")]
Threshold = Annotated[
    float | None,
    Form(gt=0, lt=1, description="with two labels: the probability of the task's second label from which on it is the answer"),
]
TopK = Annotated[
    int | None,
    Form(ge=1, description="how many of the probabilities are told, the highest first, and always that of the label; all if left out"),
]


def build_app(
    classifier: Classifier,
    config: ServeConfig,
    max_classifying: int,
    max_explaining: int,
    *,
    looker: Looker | None = None,
    fetcher: Fetcher | None = None,
    readiness: Readiness | None = None,
    others: Others | None = None,
    proxy_adds_id: bool = False,
) -> FastAPI:
    """The service around `classifier`, which sees at most that many classifications and rationales at once, and, where attention is
    offered, `looker`; it is in the app's state as `service`, and what is counted of it as `metrics`. Where addresses are taken, `fetcher`
    fetches them, by default as `config` says; `readiness` likewise. `others` are asked about the videos that they keep. `proxy_adds_id` is
    as in `serve.envelope.Envelope`."""
    summary = "Video classification with reasons on demand"
    # The description is /openapi.json. FastAPI's pages about it would load scripts from elsewhere.
    app = FastAPI(title="RB-FT", version=__version__, summary=summary, docs_url=None, redoc_url=None)
    # The last is the outermost: a request without a key is refused before a byte of its body is read.
    app.add_middleware(
        BodyLimit,
        max_bytes=config.max_upload_bytes,
        timeout_s=config.body_timeout_s,
        max_bytes_in_flight=config.max_bytes_in_flight,
    )
    app.add_middleware(KeyGate, ring=None if config.keys is None else KeyRing(config.keys))
    metrics = Metrics("local" if others is None else others.own_id)
    app.add_middleware(Envelope, model_version=classifier.version.fingerprint, metrics=metrics, proxy_adds_id=proxy_adds_id)
    answer_with_problems(app)
    describe_json(app)
    # For the description alone: `KeyGate` has looked at it by then.
    needs_key = [] if config.keys is None else [Security(HTTPBearer(auto_error=False, description="a key of the service"))]
    if fetcher is None and config.urls.is_on:
        fetcher = Fetcher(config.urls, config.max_upload_bytes)
    service = Service(classifier, config, max_classifying, max_explaining, looker, fetcher, others)
    readiness = readiness or Readiness(classifier, config.canary)
    models = {"classifier": classifier.version, "rationale": classifier.rationale_version}
    metrics.watch(service.queues, service.clips, readiness, models)
    app.state.service, app.state.metrics = service, metrics
    app.include_router(_uploads(service), dependencies=needs_key)
    app.include_router(_batches(service, config.max_batch_files), dependencies=needs_key)
    samples = page.find_samples(config.samples)
    app.include_router(_about(classifier, config, len(samples), looker is not None), dependencies=needs_key)
    app.include_router(page.samples(samples), dependencies=needs_key)
    app.include_router(_counted(metrics), dependencies=needs_key)
    app.include_router(_health(readiness))
    app.include_router(page.page())
    return app


def _uploads(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=UploadRoute)

    @router.post("/classify", responses=described_of(examples.CLASSIFIED, *UPLOAD_STATUSES), summary="The label of a video")
    async def classify(
        request: Request,
        video: Video = None,
        url: Url = None,
        context: Context = None,
        threshold: Threshold = None,
        top_k: TopK = None,
        with_rationale: Annotated[bool, Form(description="also say why, in the same answer")] = False,
    ) -> ClassifyAnswer:
        _check_threshold(service, threshold)
        asker, source = _asker(request), _video(video, url)
        answer = service.classify(asker, source, context, threshold=threshold, top_k=top_k, with_rationale=with_rationale)
        return await while_connected(request.receive, answer)

    as_json_or_events = described_of(examples.EXPLAINED, *UPLOAD_STATUSES, 404)
    as_json_or_events[200]["content"][events.MEDIA_TYPE] = {"schema": {"type": "string"}, "example": examples.STREAM}

    @router.post(
        "/rationale",
        responses=as_json_or_events,
        response_model=RationaleAnswer,
        summary="What the model sees in a video, under the task's headings",
        description="JSON, or with `Accept: text/event-stream` server-sent events: `start`, `text` as it is written, `end` or `problem`.",
    )
    async def rationale(
        request: Request,
        video: Video = None,
        url: Url = None,
        video_id: VideoId = None,
        context: Context = None,
    ) -> RationaleAnswer | Response:
        asker, source = _asker(request), _video_or_id(video, url, video_id)
        if events.MEDIA_TYPE not in request.headers.get("accept", ""):
            return await while_connected(request.receive, service.explain(asker, source, context))
        stream = events.EventStream(lambda say: service.explain(asker, source, context, say))
        await while_connected(request.receive, stream.begin())
        return stream

    @router.post(
        "/attention",
        responses=described_of(examples.LOOKED, *UPLOAD_STATUSES, 404),
        summary="Where the model looks when it is about to say the label: heatmaps over the frames",
    )
    async def attention(
        request: Request, video: Video = None, url: Url = None, video_id: VideoId = None, context: Context = None
    ) -> AttentionAnswer:
        asker, source = _asker(request), _video_or_id(video, url, video_id)
        return await while_connected(request.receive, service.look_where(asker, source, context))

    @router.post(
        "/frames",
        responses=described_of(examples.SHOWN, *UPLOAD_STATUSES, 404),
        summary="The frames that the model saw of a video classified a short while ago, as pictures for a person",
    )
    async def frames(
        request: Request, video_id: Annotated[str, Form(max_length=64, description="as in the answer of `/v1/classify`")]
    ) -> FramesAnswer:
        return await while_connected(request.receive, service.show(_asker(request), video_id))

    return router


def _batches(service: Service, max_files: int) -> APIRouter:
    router = APIRouter(prefix="/v1/classify", route_class=route_of_files(max_files))

    @router.post(
        "/batch",
        responses=described_of(examples.BATCH, *(status for status in UPLOAD_STATUSES if status != 504)),
        summary="The labels of many videos, each with its answer or its problem, in the order in which they are sent",
    )
    async def batch(
        request: Request,
        video: Annotated[list[UploadFile], File(description="the video files, each in a part of its own")],
        context: Context = None,
        threshold: Threshold = None,
        top_k: TopK = None,
    ) -> BatchAnswer:
        _check_threshold(service, threshold)
        work = classify_many(service, _asker(request), video, context, threshold=threshold, top_k=top_k)
        return await while_connected(request.receive, work)

    return router


def _about(classifier: Classifier, config: ServeConfig, num_samples: int, has_attention: bool) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/task", responses=described_of(examples.TASK, 401), summary="Labels, prompts, where the model comes from, limits")
    async def task() -> TaskAnswer:
        about, why, spec = classifier.task, classifier.rationale_task, classifier.spec
        return TaskAnswer(
            name=about.name,
            labels=about.labels,
            question=about.question,
            rationale_prompt=why.rationale_prompt,
            headings=tuple(dimension.heading for dimension in why.dimensions),
            model=classifier.version,
            rationale_model=None if classifier.rationale_version == classifier.version else classifier.rationale_version,
            calibration=classifier.calibration,
            lineage={name: value for name, value in classifier.lineage.items() if name in _TOLD_OF_LINEAGE},
            sampled=Sampled(fps=spec.fps, max_frames=spec.max_frames, max_pixels=spec.max_pixels),
            limits=Limits(
                max_upload_bytes=config.max_upload_bytes,
                body_timeout_s=config.body_timeout_s,
                max_duration_s=config.max_duration_s,
                max_frames=config.max_frames,
                max_frame_pixels=config.max_frame_pixels,
                max_context_characters=MAX_CONTEXT_CHARACTERS,
                max_batch_files=config.max_batch_files,
                request_timeout_s=config.request_timeout_s,
                video_kept_s=config.clip_cache_s,
            ),
            num_samples=num_samples,
            has_attention=has_attention,
            takes_urls=config.urls.is_on,
        )

    return router


def _counted(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": examples.METRICS}}}, **described(401)},
        summary="Counts, times, queues and kept videos of the replica that answers, for Prometheus",
    )
    async def told() -> Response:
        return Response(metrics.text(), media_type=METRICS_MEDIA_TYPE)

    return router


def _health(readiness: Readiness) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", responses=described(503), summary="The canaries have got their labels, and the engine answers")
    async def readyz() -> Health:
        try:
            await readiness.check()
        except NotReadyError:  # files and labels are for the log: anybody may ask here
            raise NotReadyError("it has not shown that it answers right; its log says why") from None
        except EngineGoneError as error:
            logger.error("not ready: %s", error)
            raise EngineGoneError("its engine is gone, and is being replaced; its log says why") from None
        return Health()

    return router


def _asker(request: Request) -> Asker:
    """Whose request it is, from what `serve.envelope` and `serve.keys` have left in its state."""
    state, observe = request.state, request.app.state.metrics.phase
    asker = Asker(request_id=state.request_id, owner=state.key.sha256, began=state.began, timing_s=state.timing_s, observe=observe)
    observe("receive", asker.timing_s["receive"])
    return asker


def _video(video: UploadFile | None, url: str | None) -> UploadFile | Link:
    """Whichever of the two was given."""
    if (video is None) == (url is None):
        raise _invalid("video", "give either the file or its url")
    return Link(url or "") if video is None else video


def _video_or_id(video: UploadFile | None, url: str | None, video_id: str | None) -> UploadFile | Link | str:
    """Whichever of the three was given."""
    if video_id is None:
        return _video(video, url)
    if video is not None or url is not None:
        raise _invalid("video", "give either the file, or its url, or the video_id of one classified before")
    return video_id


def _check_threshold(service: Service, threshold: float | None) -> None:
    if threshold is not None and len(service.classifier.task.labels) != 2:
        raise _invalid("threshold", "is for tasks with two labels, and this one has more; choose by the probabilities")


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
