"""A small client of the HTTP API (`serve/`).

    with Client("http://127.0.0.1:8000") as client:
        print(client.classify("clip.mp4").label)

A refusal comes back as the error of our tree whose code the service named, so `except VideoError` works as it does locally.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from rbft.api import ClassifyAnswer, Problem, RationaleAnswer, TaskAnswer
from rbft.errors import RBFTError, ServiceError, VideoMissingError, error_from_code

Answer = TypeVar("Answer", bound=BaseModel)


class Client:
    """Asks one service. Methods raise the error that the service named, and `ServiceError` if it cannot be reached or understood."""

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_s: float = 150.0) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=timeout_s)

    def classify(self, path: str | Path, context: str | None = None) -> ClassifyAnswer:
        """Label and probabilities of the video file `path`."""
        return self._upload("/v1/classify", path, context, ClassifyAnswer)

    def rationale(self, path: str | Path, context: str | None = None) -> RationaleAnswer:
        """What the model sees in the video file `path`."""
        return self._upload("/v1/rationale", path, context, RationaleAnswer)

    def task(self) -> TaskAnswer:
        """Labels, prompts, model version and limits of the service."""
        return self._answer(self._http.build_request("GET", "/v1/task"), TaskAnswer)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _upload(self, route: str, path: str | Path, context: str | None, kind: type[Answer]) -> Answer:
        fields = {} if context is None else {"context": context}
        try:
            with open(path, "rb") as file:
                # The service never looks at the file's name, so it does not learn it.
                request = self._http.build_request("POST", route, files={"video": ("video", file)}, data=fields)
                return self._answer(request, kind)
        except OSError as error:
            raise VideoMissingError(f"{path}: cannot be read ({error.strerror}); correct the path") from None

    def _answer(self, request: httpx.Request, kind: type[Answer]) -> Answer:
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._url}: cannot be reached ({error}); start it with `make serve`") from None
        try:
            if response.is_success:
                return kind.model_validate_json(response.content)
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            raise ServiceError(f"{self._url}: answered {response.status_code} with something else than the API's bodies") from None
        raise _error(problem)


def _error(problem: Problem) -> RBFTError:
    error = error_from_code(problem.code, problem.detail)
    return error if error.code == problem.code else ServiceError(f"{problem.title} ({problem.code}): {problem.detail}")
