"""An upload on its way from the request's body to a file that the decoder reads. The client's name for it is never used."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Request, Response, UploadFile
from fastapi.routing import APIRoute

from rbft.errors import RBFTError

_MAX_FIELDS = 16
"""Beside the video. A form of ours has fewer than ten."""
_MAX_FIELD_BYTES = 64 << 10
"""More than the longest context in UTF-8."""


class UploadRoute(APIRoute):
    """A route whose form has one file and few, short fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_upload(request: Request) -> Response:
            return await handle(_UploadRequest(request.scope, request.receive))

        return handle_upload


class _UploadRequest(Request):
    def form(self, **_: Any) -> Any:
        return super().form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)


@asynccontextmanager
async def received(upload: UploadFile) -> AsyncIterator[Path]:
    """The upload as a file for as long as the context lasts. Errors that leave it name "the upload", not a path of this machine."""
    # A file and no folder, which takes longer to make and to remove.
    descriptor, name = tempfile.mkstemp(prefix="rbft-upload-")
    os.close(descriptor)
    try:
        await asyncio.to_thread(_copy, upload, name)
        yield Path(name)
    except RBFTError as error:
        raise type(error)(str(error).replace(name, "the upload")) from error
    finally:
        os.unlink(name)


def _copy(upload: UploadFile, name: str) -> None:
    with open(name, "r+b") as target:  # that is there: a thread that comes late must not make the file again
        shutil.copyfileobj(upload.file, target, 1 << 20)
