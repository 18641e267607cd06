"""The page on which rationales are reviewed, and the server that has it: for one person, on her own machine.

Whoever reads the address may change the review, so there is a token in it, as in a notebook server's; pages from elsewhere do not know it.
Requests under a foreign host name are refused, and the page may load and send nothing but what lies beside it.
"""

from __future__ import annotations

import contextlib
import mimetypes
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rbft import storage
from rbft.api import Problem
from rbft.config import VideoConfig
from rbft.errors import DataError, JobError, RBFTError, RequestError, VideoError, VideoMissingError
from rbft.evaluation.figures import frame_images
from rbft.pages import html_environment
from rbft.rationales.gates import GATES
from rbft.rationales.review import Action
from rbft.review.reviewer import STATUSES, Item, Reviewer
from rbft.video.pool import DecodePool

HOST = "127.0.0.1"
"""And no other: what is reviewed may be of people's homes."""
_PAGE_ROWS = 200
"""Rows of the list that a browser gets at a time."""
_STRIP = {"max_frames": 12, "max_height": 168}
_KEPT_COPIES = 3
"""Remote videos kept on this disk: a player asks for one in several pieces."""

_STATUS_OF: dict[type[RBFTError], HTTPStatus] = {
    VideoMissingError: HTTPStatus.NOT_FOUND,
    VideoError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RequestError: HTTPStatus.NOT_FOUND,
    DataError: HTTPStatus.UNPROCESSABLE_ENTITY,
}


class ChangeBody(BaseModel):
    """What the page sends when somebody decides."""

    model_config = ConfigDict(extra="forbid")

    id: str
    action: Action | Literal["undo"]
    text: str = ""
    note: str = ""


def build_app(reviewer: Reviewer, video: VideoConfig, pool: DecodePool, token: str) -> FastAPI:
    """The app, all of it below `/<token>/`."""
    copies = _Copies()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        copies.close()

    app = FastAPI(title="RB-FT review", openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    app.add_exception_handler(RBFTError, _on_our_error)
    page = html_environment("rbft.review").get_template("review.html.j2")
    routes = APIRouter()

    @app.middleware("http")
    async def only_with_token(request: Request, call_next: Callable[[Request], Any]) -> Response:
        given = request.url.path.lstrip("/").partition("/")[0]
        if not secrets.compare_digest(given.encode(), token.encode()):
            return _problem(HTTPStatus.FORBIDDEN, "request", "open the address that `rbft review` printed, with the token in it")
        response: Response = await call_next(request)
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        response.headers.update(
            {"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
        )
        if not request.url.path.endswith("/video"):
            response.headers["Cache-Control"] = "no-store"
        return response

    @routes.get("/")
    def index() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        labels = list(reviewer.task.labels)
        if any(item.example.label is None for item in reviewer.items):
            labels.append("")
        faults = {name: gate.fault for name, gate in GATES.items()}
        html = page.render(reviewer=reviewer, gates=faults, labels=labels, statuses=STATUSES, nonce=nonce)
        rules = [f"script-src 'nonce-{nonce}'", f"style-src 'nonce-{nonce}'", "img-src data:", "media-src 'self'", "connect-src 'self'"]
        policy = "; ".join(["default-src 'none'", *rules, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @routes.get("/rationales")
    def rationales(
        status: str | None = None,
        gate: str | None = None,
        label: str | None = None,
        text: str = "",
        order: Literal["worst", "manifest"] = "worst",
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        reviewer.refresh()
        found = reviewer.find(status, gate, label, text, order == "worst")
        shown = [_brief(item) for item in found[offset : offset + _PAGE_ROWS]]
        return {"counts": reviewer.counts(), "num_found": len(found), "rows": shown}

    @routes.get("/rationale")
    def rationale(id: str) -> dict[str, Any]:
        reviewer.refresh()
        return _detail(reviewer, reviewer.item(id))

    @routes.post("/change")
    def change(body: ChangeBody) -> dict[str, Any]:
        item = reviewer.undo(body.id) if body.action == "undo" else reviewer.change(body.id, body.action, body.text, body.note)
        return _detail(reviewer, item)

    @routes.get("/frames")
    async def frames(id: str) -> list[dict[str, Any]]:
        example = reviewer.item(id).example
        clip = await pool.decode_async(example.uri, video.spec(), example.start_s, example.end_s)
        return [{"uri": image.uri, "timestamp_s": image.timestamp_s} for image in frame_images(clip, **_STRIP)]

    @routes.get("/video")
    def whole_video(id: str) -> FileResponse:
        uri = reviewer.item(id).example.uri
        path = copies.local(uri)
        if not path.is_file():
            raise VideoMissingError(f"{storage.shown(uri)}: no such file")
        guessed = mimetypes.guess_type(storage.shown(uri))[0] or ""
        return FileResponse(path, media_type=guessed if guessed.startswith("video/") else "video/mp4")  # answers range requests

    app.include_router(routes, prefix=f"/{token}")
    return app


class _Copies:
    """The remote videos that were asked for last, as local files."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, tuple[Path, contextlib.ExitStack]] = OrderedDict()
        self._lock = threading.Lock()

    def local(self, uri: str) -> Path:
        """Raises `VideoMissingError` if it cannot be fetched."""
        with self._lock:
            if uri not in self._open:
                stack = contextlib.ExitStack()
                self._open[uri] = (stack.enter_context(storage.local_copy(uri)), stack)
            self._open.move_to_end(uri)
            while len(self._open) > _KEPT_COPIES:
                self._open.popitem(last=False)[1][1].close()
            return self._open[uri][0]

    def close(self) -> None:
        for _, stack in self._open.values():
            stack.close()


def _brief(item: Item) -> dict[str, Any]:
    """A row of the list."""
    return {
        "id": item.example.id,
        "label": item.example.label,
        "status": item.status,
        "failed": list(item.current.failed),
        "begins": " ".join(item.text[:160].split()),
    }


def _detail(reviewer: Reviewer, item: Item) -> dict[str, Any]:
    """All that the page shows of one rationale."""
    rationale, example = item.current.rationale, item.example
    provenance = {name: value for name, value in rationale.provenance.items() if name != "review"}
    headings = [dimension.heading for dimension in reviewer.task.dimensions]
    return _brief(item) | {
        "text": rationale.text,
        "generated": item.generated.rationale.text,
        "missing": [heading for heading in headings if not rationale.sections.get(heading)],
        "scores": item.current.scores,
        "start_s": example.start_s,
        "end_s": example.end_s,
        "facts": {
            "video": storage.shown(example.uri),
            "category": example.category,
            "context": example.context,
            "a person's description": example.human_text,
            "finish reason": rationale.finish_reason,
            "tokens": rationale.num_tokens,
            **provenance,
        },
        "history": [{"at": c.at, "by": c.by, "action": c.action, "note": c.note} for c in item.history],
        "counts": reviewer.counts(),
    }


def _problem(status: HTTPStatus, code: str, detail: str) -> JSONResponse:
    body = Problem(title=status.phrase, status=status, detail=detail, code=code)
    return JSONResponse(body.model_dump(), status, media_type="application/problem+json")


async def _on_our_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RBFTError)
    status = next((_STATUS_OF[kind] for kind in type(error).__mro__ if kind in _STATUS_OF), HTTPStatus.INTERNAL_SERVER_ERROR)
    return _problem(status, error.code, str(error))


def serve_review(reviewer: Reviewer, video: VideoConfig, port: int, announce: Callable[[str], None]) -> None:
    """Serve the page at `HOST`, on a free port for 0, until Ctrl-C. `announce` is told the address, token and all.

    Raises `JobError` if the port is taken.
    """
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise JobError(f"{HOST}:{port} cannot be used ({error.strerror}); end what runs there or give another --port") from None
    token = secrets.token_urlsafe(24)
    with listener, DecodePool(2, video.timeout_s, video.memory_limit_bytes) as pool:
        app = build_app(reviewer, video, pool, token)
        # No log of requests: the token is in their paths. A player holds its connection open, so the end does not wait for it.
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
        announce(f"http://{HOST}:{listener.getsockname()[1]}/{token}/")
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended
            server.run(sockets=[listener])
