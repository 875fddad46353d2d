"""Any error of a request as its answer, in the error format of the endpoint that it is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import Internal, InvalidParameter, MalformedRequest, MethodNotAllowed, NotFound, ServiceError, Unavailable
from .access_log import CLIENT_GONE
from .error_texts import parameter_fault
from .request_context import context_of


def error_response(
    error: ServiceError,
    scope: MutableMapping[str, Any],
    body: Callable[[ServiceError, str, str], bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as an HTTP response, recorded for the log and the metrics; `body` replaces the format's own body."""
    context = context_of(scope)
    context.problem_code = error.code
    all_headers = dict(headers or {})
    if (seconds := retry_after(error)) is not None:
        all_headers["Retry-After"] = str(seconds)
    errors = context.errors
    content = (body or errors.body)(error, context.request_id, scope.get("root_path", ""))
    return Response(content, status_code=error.status, headers=all_headers, media_type=errors.media_type)


def retry_after(error: ServiceError) -> int | None:
    """The value of the Retry-After header in whole seconds, if the error has one."""
    if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
        return max(1, math.ceil(error.retry_after_seconds))
    return None


async def refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error."""
    await error_response(error, scope)(scope, receive, send)


def no_answer(scope: MutableMapping[str, Any]) -> Response:
    """The response for a client that has left. The server drops it; the log shows 499."""
    context_of(scope).problem_code = "client_gone"
    return Response(status_code=CLIENT_GONE)


async def _on_service_error(request: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, ServiceError) else Internal(), request.scope)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's validation of query and headers: the error names the parameter and its range, never the sent value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return error_response(InvalidParameter(parameter_fault(str(first["loc"][-1]), first["msg"])), request.scope)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """The connection closed in the middle of a body: the answer has no reader."""
    return no_answer(request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own 404 and 405, and any other `HTTPException`."""
    assert isinstance(error, HTTPException)
    known: dict[int, ServiceError] = {404: NotFound(), 405: MethodNotAllowed()}
    fallback = MalformedRequest() if error.status_code < 500 else Internal()
    return error_response(known.get(error.status_code, fallback), request.scope, headers=error.headers)


def error_handlers() -> dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]:
    """One handler for each family of errors, for `FastAPI(exception_handlers=…)`."""
    return {
        ServiceError: _on_service_error,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_client_gone,
    }
