"""A form on its way from the request's body to the routes, and its upload to a file that the decoder reads. The client's name for that is
never used.

JSON is read as the form that it stands for: an object with the fields of the form, but the file.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers

from rbft.errors import OverloadedError, RBFTError

logger = logging.getLogger(__name__)

FORM, JSON = "multipart/form-data", "application/json"
_WANTED = "send multipart/form-data with the file in the field `video`, e.g. curl -F video=@clip.mp4, or JSON with its `url`"
_MAX_FIELDS = 16
"""Beside the video. A form of ours has fewer than ten."""
_MAX_FIELD_BYTES = 64 << 10
"""More than the longest context in UTF-8."""


class UploadRoute(APIRoute):
    """A route that takes a form with one file and few, short fields, or the fields as JSON."""

    max_files = 1

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_upload(request: Request) -> Response:
            if media_type(request.headers) not in (FORM, JSON):
                raise HTTPException(415, _WANTED)
            return await handle(_UploadRequest(request, self.max_files))

        return handle_upload


def route_of_files(max_files: int) -> type[UploadRoute]:
    """An `UploadRoute` whose form has up to that many files."""
    return type("BatchRoute", (UploadRoute,), {"max_files": max_files})


class _UploadRequest(Request):
    def __init__(self, request: Request, max_files: int) -> None:
        super().__init__(request.scope, request.receive)
        self._max_files = max_files

    def form(self, **_: Any) -> Any:
        return self._form_of_json() if media_type(self.headers) == JSON else self._form_of_parts()

    async def _form_of_parts(self) -> FormData:
        try:
            with storing():  # Starlette has files above 1 MiB in the temporary folder
                return await super().form(max_files=self._max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
        except OverloadedError as error:  # FastAPI lets no other exception than this through the reading of a body
            raise HTTPException(503, str(error), {"Connection": "close"}) from error

    async def _form_of_json(self) -> FormData:
        try:
            fields = json.loads(await self.body())
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise HTTPException(400, 'the body is not a JSON object of fields, such as {"url": "https://…"}')
        return FormData({name: value for name, value in fields.items() if value is not None})


def media_type(headers: Headers) -> str:
    """That of a request's body, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def received(upload: UploadFile) -> AsyncIterator[Path]:
    """The upload as a file for as long as the context lasts. Errors that leave it name "the upload", not a path of this machine."""
    # A file and no folder, which takes longer to make and to remove.
    with storing():
        descriptor, path = tempfile.mkstemp(prefix="rbft-upload-")
    os.close(descriptor)
    try:
        with storing():
            await asyncio.to_thread(_copy, upload, path)
        with named(Path(path), "the upload"):
            yield Path(path)
    finally:
        os.unlink(path)


@contextmanager
def storing() -> Iterator[None]:
    """A failure of this machine's files in the context, such as a full disk or too many open ones, becomes `OverloadedError`."""
    try:
        yield
    except OSError as error:
        logger.error("cannot store a video errno=%s", errno.errorcode.get(error.errno or 0, error.errno))
        raise OverloadedError("the service has no room to store the video now; try again later") from error


@contextmanager
def named(path: Path, name: str) -> Iterator[None]:
    """Errors that leave the context call the file `path` by `name`, and do not tell where it lay."""
    try:
        yield
    except RBFTError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def _copy(upload: UploadFile, name: str) -> None:
    with open(name, "r+b") as target:  # that is there: a thread that comes late must not make the file again
        shutil.copyfileobj(upload.file, target, 1 << 20)
