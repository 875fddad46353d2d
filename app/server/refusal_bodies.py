"""Bodies of refusals: rendered once for each error, completed for each request."""

from __future__ import annotations

import copy

from ..api.endpoint import ErrorFormat
from ..errors import Unavailable

# Placeholders for the two values that differ between requests; no text contains them by chance.
_ID = "f1b5c0de-7d0a-4c54-9a39-6f2f4be1a9d7"
_MILLISECONDS = 987_654_321


class RefusalBodies:
    """A template for each error, format and prefix: a bytes format for the request's id and the milliseconds."""

    def __init__(self) -> None:
        self._templates: dict[tuple[ErrorFormat, str, str, str, bool], bytes | None] = {}

    def body(self, errors: ErrorFormat, error: Unavailable, request_id: str, root_path: str) -> bytes:
        """The same result as `errors.body`, in a fraction of its time."""
        wait = error.retry_after_seconds
        key = (errors, error.code, error.detail, root_path, wait is None)
        template = self._templates.get(key)
        if template is None:
            if key not in self._templates:
                self._templates[key] = _template(errors, error, request_id, root_path)
            return errors.body(error, request_id, root_path)
        return _filled(template, error, request_id)


def _template(errors: ErrorFormat, error: Unavailable, request_id: str, root_path: str) -> bytes | None:
    """None for a format whose bodies differ in other values too."""
    example = copy.copy(error)
    if error.retry_after_seconds is not None:
        example.retry_after_seconds = _MILLISECONDS / 1e3
    text = errors.body(example, _ID, root_path).replace(b"%", b"%%")
    template = text.replace(_ID.encode(), b"%(id)b").replace(str(_MILLISECONDS).encode(), b"%(ms)d")
    is_right = _filled(template, error, request_id) == errors.body(error, request_id, root_path)
    return template if is_right else None


def _filled(template: bytes, error: Unavailable, request_id: str) -> bytes:
    return template % {b"id": request_id.encode(), b"ms": round((error.retry_after_seconds or 0) * 1e3)}
