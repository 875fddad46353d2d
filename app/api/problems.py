"""Every error in one shape: RFC 9457 problem+json, whichever layer answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import (
    Internal,
    InvalidParameter,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    Unavailable,
)
from .access_log import CLIENT_GONE
from .error_reference import problem_type

MEDIA_TYPE = "application/problem+json"


def problem(error: ServiceError, scope: Mapping[str, Any], **extensions: Any) -> dict[str, Any]:
    """The body of an error: RFC 9457's members, then `code`, `request_id` and `retryable`.

    Of `scope` (ASGI's) it needs `request_id` and `root_path`.
    """
    body: dict[str, Any] = {
        "type": problem_type(error.code, scope.get("root_path", "")),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": scope.get("request_id", ""),
        "retryable": error.retryable,
    }
    if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
        body["retry_after_ms"] = round(error.retry_after_seconds * 1e3)
    return body | extensions


def problem_response(
    error: ServiceError, scope: MutableMapping[str, Any], headers: Mapping[str, str] | None = None, **extensions: Any
) -> Response:
    """An error as an HTTP response, noted in `scope` for the log and the metrics."""
    scope["problem_code"] = error.code
    all_headers = dict(headers or {})
    if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
        all_headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    return Response(
        json.dumps(problem(error, scope, **extensions), separators=(",", ":")),
        status_code=error.status,
        headers=all_headers,
        media_type=MEDIA_TYPE,
    )


def _answer(request: Request, error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    return problem_response(error, request.scope, headers)


async def _on_service_error(request: Request, error: Exception) -> Response:
    return _answer(request, error if isinstance(error, ServiceError) else Internal())


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's own checks of query and headers: name the parameter and what it may be, never what was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = first["loc"][-1]
    return _answer(request, InvalidParameter(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}."))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """The connection closed in the middle of a body: nobody is there to read an answer."""
    request.scope["problem_code"] = "client_gone"
    return Response(status_code=CLIENT_GONE)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own 404 and 405, and whatever else it raises."""
    assert isinstance(error, HTTPException)
    known: dict[int, ServiceError] = {404: NotFound(), 405: MethodNotAllowed()}
    fallback = MalformedRequest() if error.status_code < 500 else Internal()
    return _answer(request, known.get(error.status_code, fallback), error.headers)


async def answer_to(request: Request, error: ServiceError | ClientDisconnect) -> Response:
    """What `problem_handlers` answers to one of these, for who meets it outside FastAPI's reach."""
    handle = _on_service_error if isinstance(error, ServiceError) else _on_client_gone
    return await handle(request, error)


def problem_handlers() -> dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]:
    """One handler for each family of errors, for `FastAPI(exception_handlers=…)`."""
    return {
        ServiceError: _on_service_error,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_client_gone,
    }
