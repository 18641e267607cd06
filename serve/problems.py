"""Errors as HTTP sees them: a problem body (RFC 9457) with one of our codes, never a trace."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from rbft import errors
from rbft.api import Problem
from serve.presence import ClientGoneError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

RETRY_AFTER_S = 5
"""Told to clients that may try again: about what a short queue takes to drain."""

_STATUS: dict[type[errors.RBFTError], HTTPStatus] = {
    errors.VideoFormatError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.VideoError: HTTPStatus.UNPROCESSABLE_ENTITY,  # the file's fault, a decode that was killed twice too: sending it again is no use
    errors.EngineGoneError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DecoderStartError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.EngineError: HTTPStatus.UNPROCESSABLE_ENTITY,  # refused this request, e.g. longer than the model's context
    errors.RequestError: HTTPStatus.BAD_REQUEST,
    errors.UnauthorizedError: HTTPStatus.UNAUTHORIZED,
    errors.ClipExpiredError: HTTPStatus.NOT_FOUND,
    errors.UploadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UploadTimeoutError: HTTPStatus.REQUEST_TIMEOUT,
    errors.OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RequestTimeoutError: HTTPStatus.GATEWAY_TIMEOUT,
    errors.NotOfferedError: HTTPStatus.NOT_FOUND,
    errors.NotReadyError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.UrlRefusedError: HTTPStatus.FORBIDDEN,
    errors.UrlUnreachableError: HTTPStatus.UNPROCESSABLE_ENTITY,
}


_ABOUT_BODIES: dict[int, type[errors.RBFTError]] = {
    _STATUS[kind]: kind for kind in (errors.UploadTooLargeError, errors.UploadTimeoutError, errors.OverloadedError)
}
"""What `serve.limits` and `serve.upload` mean by the status of an exception that FastAPI lets through the reading of a body."""


def status_of(error: errors.RBFTError) -> HTTPStatus:
    """The status of the nearest class of `error` that has one; 500 for errors that no request can cause."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The problem response; one that says 503 says when to try again."""
    headers = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    return JSONResponse(_body(status, code, detail).model_dump(), status, headers, MEDIA_TYPE)


def problem_of(error: errors.RBFTError) -> Problem:
    """The body about `error`, for a response that has begun already."""
    status = status_of(error)
    return unexpected() if status == HTTPStatus.INTERNAL_SERVER_ERROR else _body(status, error.code, str(error))


def unexpected() -> Problem:
    """The body about what nobody expected, which tells nothing of it."""
    detail = "the service failed on this request; its log has the reason"
    return _body(HTTPStatus.INTERNAL_SERVER_ERROR, errors.ServiceError.code, detail)


def _body(status: int, code: str, detail: str) -> Problem:
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, code=code)


def answer_with_problems(app: FastAPI) -> None:
    """Make every error that leaves a route of `app` a problem response; what nobody expected is left to `serve.envelope`."""
    app.add_exception_handler(errors.RBFTError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientGoneError, _on_client_gone)


UPLOAD_STATUSES = (400, 401, 403, 408, 413, 415, 422, 503, 504)
"""What an upload may be refused with."""

_CAUSES = {
    400: "not a well-formed request",
    401: "no key of the service came with the request",
    403: "no address that this service fetches from; without keys, another machine or another site's page",
    404: "no video of this id is kept for this key, or not any more; or the service does not offer this",
    408: "the body did not come in time",
    413: "the body is too large",
    415: "neither multipart/form-data nor JSON, or a video format that is not decoded",
    422: "a field is missing or wrong, or the video cannot be had or used: broken, empty, too long, frames too large or too many",
    503: "overloaded or restarting; try again after `Retry-After` seconds",
    504: "the answer was not ready in time",
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for its OpenAPI description."""
    schema = Problem.model_json_schema()
    return {
        status: {
            "description": _CAUSES[status],
            "content": {MEDIA_TYPE: {"schema": schema, "example": _body(status, _example_code(status), _CAUSES[status]).model_dump()}},
        }
        for status in statuses
    }


def described_of(example: BaseModel, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """`described` with an example of the answer."""
    answered = {"content": {"application/json": {"example": example.model_dump(mode="json")}}}
    return {200: answered, **described(*statuses)}


def _example_code(status: int) -> str:
    """A code that goes with `status`."""
    return next((kind.code for kind, its in _STATUS.items() if its == status and kind is not errors.EngineError), errors.RequestError.code)


async def _on_our_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.RBFTError)
    status = status_of(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error
    logger.info("refused path=%s status=%d code=%s", request.url.path, status, error.code)
    return problem(status, error.code, str(error))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The fields' names and what is wrong with them; what was sent is not repeated.
    detail = "; ".join(f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors())
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, errors.RequestError.code, detail)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _ABOUT_BODIES.get(error.status_code, errors.RequestError)
    return problem(error.status_code, kind.code, str(error.detail), dict(error.headers or {}))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    # For the log: nobody reads it. 499 is what nginx calls it.
    return Response(status_code=499)
