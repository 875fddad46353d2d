"""The native error format: RFC 9457 `application/problem+json`."""

from __future__ import annotations

import json
from typing import Any

from ...errors import ServiceError, Unavailable
from ..error_reference import problem_type

MEDIA_TYPE = "application/problem+json"


def problem(error: ServiceError, request_id: str, root_path: str, **extensions: Any) -> dict[str, Any]:
    """The body of an error: RFC 9457's members, then `code`, `request_id` and `retryable`."""
    body: dict[str, Any] = {
        "type": problem_type(error.code, root_path),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
    }
    if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
        body["retry_after_ms"] = round(error.retry_after_seconds * 1e3)
    return body | extensions


class Problems:
    """An `ErrorFormat`."""

    media_type = MEDIA_TYPE

    def body(self, error: ServiceError, request_id: str, root_path: str, **extensions: Any) -> bytes:
        return json.dumps(problem(error, request_id, root_path, **extensions), separators=(",", ":")).encode()


PROBLEMS = Problems()
