"""The routes: from HTTP to `serve.service` and back. No Ray and no engine here.

Not covered: what an answer is made of (`serve.classifier`), how errors look (`serve.problems`), who is let in (`serve.keys`).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, FastAPI, File, Form, Request, Response, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer

from rbft import __version__
from rbft.api import ClassifyAnswer, FramesAnswer, Health, Limits, RationaleAnswer, Sampled, TaskAnswer
from rbft.config import ServeConfig
from rbft.keys import KeyRing
from serve import events, examples, page
from serve.envelope import Envelope
from serve.keys import KeyGate
from serve.limits import BodyLimit
from serve.presence import while_connected
from serve.problems import UPLOAD_STATUSES, answer_with_problems, described, described_of
from serve.service import Asker, Classifier, Others, Service
from serve.upload import UploadRoute

_TOLD_OF_LINEAGE = frozenset(
    ("run", "system", "stage", "fingerprint", "base", "videos", "answers", "seed", "epochs", "num_items", "classes")
)
"""Of what a task card holds: no paths of the machine that trained it, no versions of what runs here."""

MAX_CONTEXT_CHARACTERS = 8192
"""A long title and transcript; far below the context of the models."""

Context = Annotated[str | None, Form(max_length=MAX_CONTEXT_CHARACTERS, description="text that comes with the video (title, transcript)")]
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
    proxy_adds_id: bool = False,
    others: Others | None = None,
) -> FastAPI:
    """The service around `classifier`, which sees at most that many classifications and rationales at once; it is in the app's state as
    `service`. `proxy_adds_id` is as in `serve.envelope.Envelope`."""
    summary = "Video classification with reasons on demand"
    # The description is /openapi.json. FastAPI's pages about it would load scripts from elsewhere.
    app = FastAPI(title="RB-FT", version=__version__, summary=summary, docs_url=None, redoc_url=None)
    # The last is the outermost: a request without a key is refused before a byte of its body is read.
    app.add_middleware(BodyLimit, max_bytes=config.max_upload_bytes, timeout_s=config.body_timeout_s)
    app.add_middleware(KeyGate, ring=None if config.keys is None else KeyRing(config.keys))
    app.add_middleware(Envelope, model_version=classifier.version.fingerprint, proxy_adds_id=proxy_adds_id)
    answer_with_problems(app)
    # For the description alone: `KeyGate` has looked at it by then.
    needs_key = [Security(HTTPBearer(auto_error=False, description="a key of the service, where it has keys"))]
    app.state.service = Service(classifier, config, max_classifying, max_explaining, others)
    app.include_router(_uploads(app.state.service), dependencies=needs_key)
    samples = page.find_samples(config.samples)
    app.include_router(_about(classifier, config, len(samples)), dependencies=needs_key)
    app.include_router(page.samples(samples), dependencies=needs_key)
    app.include_router(_health(classifier))
    app.include_router(page.page())
    return app


def _uploads(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=UploadRoute)

    @router.post("/classify", responses=described_of(examples.CLASSIFIED, *UPLOAD_STATUSES), summary="The label of a video")
    async def classify(
        request: Request,
        video: Annotated[UploadFile, File(description="the video file")],
        context: Context = None,
        threshold: Threshold = None,
        top_k: TopK = None,
        with_rationale: Annotated[bool, Form(description="also say why, in the same answer")] = False,
    ) -> ClassifyAnswer:
        if threshold is not None and len(service.classifier.task.labels) != 2:
            raise _invalid("threshold", "is for tasks with two labels, and this one has more; choose by the probabilities")
        answer = service.classify(_asker(request), video, context, threshold=threshold, top_k=top_k, with_rationale=with_rationale)
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
        video: Annotated[UploadFile | None, File(description="the video file")] = None,
        video_id: Annotated[str | None, Form(max_length=64, description="instead: that of a video classified a short while ago")] = None,
        context: Context = None,
    ) -> RationaleAnswer | Response:
        if (video is None) == (video_id is None):
            raise _invalid("video", "give either the file or the video_id of one classified before")
        asker, source = _asker(request), video or video_id or ""
        if events.MEDIA_TYPE not in request.headers.get("accept", ""):
            return await while_connected(request.receive, service.explain(asker, source, context))
        stream = events.EventStream(lambda say: service.explain(asker, source, context, say))
        await while_connected(request.receive, stream.begin())
        return stream

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


def _about(classifier: Classifier, config: ServeConfig, num_samples: int) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/task", responses=described_of(examples.TASK, 401), summary="Labels, prompts, where the model comes from, limits")
    async def task() -> TaskAnswer:
        about, spec = classifier.task, classifier.spec
        return TaskAnswer(
            name=about.name,
            labels=about.labels,
            question=about.question,
            rationale_prompt=about.rationale_prompt,
            headings=tuple(dimension.heading for dimension in about.dimensions),
            model=classifier.version,
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
                request_timeout_s=config.request_timeout_s,
                video_kept_s=config.clip_cache_s,
            ),
            num_samples=num_samples,
        )

    return router


def _health(classifier: Classifier) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", responses=described(503), summary="The engine answers")
    async def readyz() -> Health:
        await classifier.check_health()
        return Health()

    return router


def _asker(request: Request) -> Asker:
    """Whose request it is, from what `serve.envelope` and `serve.keys` have left in its state."""
    state = request.state
    return Asker(request_id=state.request_id, owner=state.key.sha256, began=state.began)


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])
