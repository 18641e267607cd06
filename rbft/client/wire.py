"""What the two clients have in common: questions to HTTP, HTTP to answers and errors, and when to try again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, retry_if_exception_type, stop_after_attempt

from rbft.api import BatchAnswer, ClassifyAnswer, Limits, Problem, RationaleAnswer, RationaleStart, TextPiece
from rbft.errors import RBFTError, RequestError, ServiceError, VideoMissingError, error_from_code

KEY_ENV = "RBFT_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 150.0
"""A little more than the service's own."""
DEFAULT_RETRIES = 4
_LONGEST_WAIT_S = 300.0
"""Whatever Retry-After says: a larger engine takes minutes to start, and beyond that the caller should know."""
_TRY_AGAIN = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)
"""The service says the first; what stands in front of it may say the second."""
_FIRST_WAIT_S = 0.5
_PART_BYTES, _FIELD_BYTES = 1_000, 65_536
"""More than what multipart puts around a file, and than all other fields."""

Answer = TypeVar("Answer", bound=BaseModel)
Said = RationaleStart | TextPiece | RationaleAnswer
"""What a stream says: its start, its pieces, and the whole."""
_SAID: dict[str, type[BaseModel]] = {"start": RationaleStart, "text": TextPiece, "end": RationaleAnswer}


@dataclass(frozen=True)
class Question:
    """One request, as often as it has to be sent."""

    method: str
    route: str
    paths: tuple[str | Path, ...] = ()
    """Of the videos to upload."""
    fields: tuple[tuple[str, str], ...] = ()
    accept: str = "application/json"

    @contextmanager
    def sendable(self) -> Iterator[dict[str, Any]]:
        """Arguments of httpx's `build_request`; the files are open for as long as the context lasts. Raises `VideoMissingError`."""
        arguments: dict[str, Any] = {"method": self.method, "url": self.route, "headers": {"Accept": self.accept}}
        # A part without a name is a field. Multipart in any case, which is what the service takes.
        parts: list[tuple[str, Any]] = [(name, (None, value.encode())) for name, value in self.fields]
        with ExitStack() as files:
            for path in self.paths:
                try:
                    file = files.enter_context(open(path, "rb"))  # its errors are told apart from those of sending
                except OSError as error:
                    raise _missing(path, error) from None
                # The service never looks at the file's name, so it does not learn it.
                parts.append(("video", ("video", file)))
            yield arguments | ({"files": parts} if parts else {})


def ask_label(video: str | Path, context: str | None, threshold: float | None, top_k: int | None, with_rationale: bool) -> Question:
    options = {"context": context, "threshold": threshold, "top_k": top_k, "with_rationale": "true" if with_rationale else None}
    return _ask_about("/v1/classify", video, None, options)


def ask_labels(paths: Sequence[str | Path], context: str | None, threshold: float | None, top_k: int | None) -> Question:
    options = {"context": context, "threshold": threshold, "top_k": top_k}
    return Question("POST", "/v1/classify/batch", tuple(paths), _fields(options))


def batches(paths: Sequence[str | Path], limits: Limits) -> Iterator[Sequence[str | Path]]:
    """`paths` in their order, as many at a time as one request may hold. Raises `VideoMissingError`, and `RequestError` for an address."""
    some: list[str | Path] = []
    num_bytes = 0
    for path in paths:
        if _is_address(path):
            raise RequestError(f"{path}: many videos in one request are files; ask about an address by itself")
        try:
            size = os.path.getsize(path) + _PART_BYTES
        except OSError as error:
            raise _missing(path, error) from None
        if some and (len(some) == limits.max_batch_files or num_bytes + size > limits.max_upload_bytes - _FIELD_BYTES):
            yield some
            some, num_bytes = [], 0
        some.append(path)
        num_bytes += size
    if some:
        yield some


def read_items(url: str, answer: BatchAnswer, num_files: int) -> list[ClassifyAnswer | RBFTError]:
    """An answer or an error for each of the files."""
    found = [item.answer or (_error(item.problem) if item.problem is not None else None) for item in answer.items]
    whole = [item for item in found if item is not None]
    if len(whole) != num_files:
        raise ServiceError(f"{url}: answered about {len(whole)} of {num_files} videos")
    return whole


def ask_why(video: str | Path | None, video_id: str | None, context: str | None, *, streamed: bool = False) -> Question:
    accept = "text/event-stream" if streamed else "application/json"
    return _ask_about("/v1/rationale", video, video_id, {"context": context}, accept)


def ask_where(video: str | Path | None, video_id: str | None, context: str | None) -> Question:
    return _ask_about("/v1/attention", video, video_id, {"context": context})


def _ask_about(
    route: str, video: str | Path | None, video_id: str | None, options: dict[str, Any], accept: str = "application/json"
) -> Question:
    """About the video of an id if there is one, else about the file or what lies at the address. Raises `RequestError` if there is none."""
    if video_id is not None:
        return Question("POST", route, (), _fields(options | {"video_id": video_id}), accept)
    if video is None:
        raise RequestError(f"{route} is about a video; give its path, its address or the video_id of an answer")
    if _is_address(video):
        return Question("POST", route, (), _fields(options | {"url": video}), accept)
    return Question("POST", route, (video,), _fields(options), accept)


def _is_address(video: str | Path) -> bool:
    return isinstance(video, str) and "://" in video


def headers(key: str | None) -> dict[str, str]:
    """Those of every request; `key` None takes the environment's."""
    key = key or os.environ.get(KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


class TryAgainError(Exception):
    """Carries the error that is raised if there are no more tries."""

    def __init__(self, error: RBFTError, wait_s: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s
        """As the service says; None if it does not."""


def retrying(max_retries: int) -> dict[str, Any]:
    """Arguments of tenacity's `Retrying` and `AsyncRetrying`."""
    return {
        "retry": retry_if_exception_type(TryAgainError),
        "stop": stop_after_attempt(1 + max_retries),
        "wait": _wait_s,
        "retry_error_callback": _raise_the_error,
    }


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.wait_s if isinstance(error, TryAgainError) else None
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (state.attempt_number - 1) if told is None else told)


def _raise_the_error(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TryAgainError)
    raise error.error from None


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Errors of the connection in the context become ours: `TryAgainError` where another try may help."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise ServiceError(f"{url}: does not answer in time ({type(error).__name__}); try again later") from None
    except httpx.TransportError as error:
        reason = f"{url}: cannot be reached ({error}); start it with `make serve`"
        raise TryAgainError(ServiceError(reason), None) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"{url}: cannot be asked ({error}); correct the address") from None


def read_answer(url: str, response: httpx.Response, kind: type[Answer]) -> Answer:
    """The body of a response, read whole; raises the error that it names, `TryAgainError` around it for one of `_TRY_AGAIN`."""
    if not response.is_success:
        raise refusal(url, response)
    return _parsed(url, response.content, kind)


def refusal(url: str, response: httpx.Response) -> Exception:
    """The error that an unsuccessful response, read whole, names."""
    try:
        error = _error(Problem.model_validate_json(response.content))
    except ValidationError:
        error = ServiceError(f"{url}: answered {response.status_code} with something else than the API's bodies")
    return TryAgainError(error, _told_wait_s(response)) if response.status_code in _TRY_AGAIN else error


def read_event(url: str, name: str, data: bytes) -> Said | None:
    """What an event says, None for one of a kind that this client does not know; raises the error of a `problem`."""
    if name == "problem":
        raise _error(_parsed(url, data, Problem))
    if name not in _SAID:
        return None
    said = _parsed(url, data, _SAID[name])
    assert isinstance(said, RationaleStart | TextPiece | RationaleAnswer)
    return said


def cut_short(url: str) -> ServiceError:
    """Of a stream that ended without its end."""
    return ServiceError(f"{url}: the stream ended before the rationale did; ask again")


def _parsed(url: str, content: bytes, kind: type[Answer]) -> Answer:
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        raise ServiceError(f"{url}: answered with something else than the API's bodies") from None


def _told_wait_s(response: httpx.Response, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date."""
    told = response.headers.get("retry-after", "")
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - now()).total_seconds())
    except (TypeError, ValueError):
        return None


def _error(problem: Problem) -> RBFTError:
    error = error_from_code(problem.code, problem.detail)
    return error if error.code == problem.code else ServiceError(f"{problem.title} ({problem.code}): {problem.detail}")


def _missing(path: str | Path, error: OSError) -> VideoMissingError:
    return VideoMissingError(f"{path}: cannot be read ({error.strerror}); correct the path")


def _fields(options: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in options.items() if value is not None)
