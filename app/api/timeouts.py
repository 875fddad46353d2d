"""Deadlines: the one that a client asks for, and the 408 for a request that arrives too slowly."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import RequestTimeout

# Headers or a body have stalled if nothing arrived for this share of their allowed time; otherwise they are slow.
_STALLED_SHARE = 0.25


def timeout_of(silent_seconds: float, allowed_seconds: float, too_slow: type[RequestTimeout]) -> RequestTimeout:
    """The error of headers or a body that ran out of time: stalled, which may pass, or `too_slow`, which would recur.

    `silent_seconds` have passed since the last piece; `allowed_seconds` were allowed in all.
    """
    return RequestTimeout() if silent_seconds > _STALLED_SHARE * allowed_seconds else too_slow()


def asked_seconds(headers: Mapping[bytes, bytes]) -> float | None:
    """X-Request-Timeout-Ms in seconds, if it is a number; the endpoint's parser refuses any other value."""
    value = headers.get(b"x-request-timeout-ms", b"")
    is_number = value.isdigit() and 0 < len(value) < 10 and int(value) > 0
    return int(value) / 1e3 if is_number else None
