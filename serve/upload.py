"""A form on its way from the request's body to the routes, and its upload to a file that the decoder reads. The client's name for that is
never used.

JSON is read as the form that it stands for: an object with the fields of the form, but the file.
"""

from __future__ import annotations

import asyncio
import json
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

from rbft.errors import RBFTError

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
        if media_type(self.headers) == JSON:
            return self._form_of_json()
        return super().form(max_files=self._max_files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)

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
    descriptor, path = tempfile.mkstemp(prefix="rbft-upload-")
    os.close(descriptor)
    try:
        await asyncio.to_thread(_copy, upload, path)
        with named(Path(path), "the upload"):
            yield Path(path)
    finally:
        os.unlink(path)


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
