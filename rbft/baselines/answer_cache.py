"""Answers that were paid for, kept on disk by the whole of what was asked, so that no question is paid twice.

One JSON file an answer, written whole or not at all the moment it is there: what a killed job had been answered is not lost with it.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from rbft import artifacts, storage
from rbft.engines.openai_answer import Completion
from rbft.errors import ArtifactError

_FORMAT = 1


class AnswerCache:
    """Any number of processes may use the same folder, a local one or a URI of any pyarrow filesystem."""

    def __init__(self, folder: str) -> None:
        self._folder = folder.rstrip("/")

    def get(self, key: str) -> Completion | None:
        """The answer kept under `key`; None if there is none, or none that can be read."""
        uri = self._uri(key)
        try:
            return Completion.model_validate(storage.read_json(uri)) if storage.exists(uri) else None
        except (ArtifactError, ValidationError):
            return None  # Asked again, and written anew.

    def put(self, key: str, completion: Completion) -> None:
        """Keep `completion`. Raises `ArtifactError` if it cannot be written."""
        storage.write_json(self._uri(key), completion.model_dump(mode="json", exclude_none=True))

    def _uri(self, key: str) -> str:
        return f"{self._folder}/{key[:2]}/{key}.json"


def answer_key(url: str, request: dict[str, Any]) -> str:
    """The key of what the server at `url` answers to `request` (`rbft.engines.openai_request.chat_request`): model, prompt, every frame's
    bytes, sampling and `extra_body` determine it. The API key is no part of a request."""
    return artifacts.fingerprint([_FORMAT, url, request])
