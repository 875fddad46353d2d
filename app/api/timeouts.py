"""Deadlines: the one that a client asks for, and which 408 answers a request that comes too late."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import RequestTimeout

# Headers or a body have stalled when nothing has come for this share of their time; else they are slow.
_STALLED_SHARE = 0.25


def timeout_of(silent_seconds: float, allowed_seconds: float, too_slow: type[RequestTimeout]) -> RequestTimeout:
    """The error of a part that has stalled, which may pass, or else `too_slow`: at that pace it would fail again.

    `silent_seconds` have passed since its last piece, of the `allowed_seconds` that it had.
    """
    return RequestTimeout() if silent_seconds > _STALLED_SHARE * allowed_seconds else too_slow()


def asked_seconds(headers: Mapping[bytes, bytes]) -> float | None:
    """X-Request-Timeout-Ms, where it is a number; the endpoint's parser refuses any other value."""
    value = headers.get(b"x-request-timeout-ms", b"")
    is_number = value.isdigit() and 0 < len(value) < 10 and int(value) > 0
    return int(value) / 1e3 if is_number else None
