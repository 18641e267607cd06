"""The page at `/` and what it offers: files that are the same for everybody, and the sample clips of the configuration.

Whatever the page knows of the service it asks for over the API, as any other client, with a key where the service has keys.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from serve.problems import described

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "assets"
_BESIDE = ("page.css", "page.js", "ask.js", "answers.js", "curl.js", "words.js")
_FILES = {"/": "page.html"} | {f"/{name}": name for name in _BESIDE}
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
PAGE_PATHS = frozenset(_FILES)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",  # the frames, as the API gives them
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # the page makes no HTML of text, and browsers that know this see to it
    )
)


def page() -> APIRouter:
    """The page, its style sheet and its scripts."""
    router = APIRouter(include_in_schema=False)
    for path, name in _FILES.items():
        router.add_api_route(path, _sender(_FOLDER / name), methods=["GET"])
    return router


def _sender(file: Path) -> Callable[[], Coroutine[Any, Any, FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(file, media_type=_MEDIA_TYPES[file.suffix], headers={"Content-Security-Policy": _POLICY})

    return send


def find_samples(named: Sequence[str]) -> list[Path]:
    """Those of the configured clips that are there; a service is no worse for one that is not."""
    found = []
    for path in map(Path, named):
        if path.is_file():
            found.append(path)
        else:
            logger.warning("serve.samples: no such file, left out: %s", path)
    return found


def samples(paths: Sequence[Path]) -> APIRouter:
    """The clips at `paths` by their number, from 1 on; their names stay here."""
    router = APIRouter()
    described_file: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    }

    @router.get(
        "/v1/samples/{number}",
        response_class=FileResponse,
        responses=described_file | described(401, 404, 422),
        summary="A sample clip of the configuration, to be classified like any other",
    )
    async def sample(number: int) -> FileResponse:
        path = paths[number - 1] if 1 <= number <= len(paths) else None
        if path is None or not path.is_file():
            raise HTTPException(404, f"there is no sample {number}; /v1/task says how many there are (num_samples)")
        return FileResponse(path, media_type="application/octet-stream")

    return router
