"""Which 408 a request is answered with that did not come in time."""

from __future__ import annotations

from ..errors import RequestTimeout

# Headers or a body of which nothing has come for this share of their time have stalled; what still comes is slow.
_STALLED_SHARE = 0.25


def timeout_of(silent_seconds: float, allowed_seconds: float, too_slow: type[RequestTimeout]) -> RequestTimeout:
    """The error of a part that has stalled, which may pass, or else `too_slow`: at that pace it would fail again.

    `silent_seconds` have passed since its last piece, of the `allowed_seconds` that it had.
    """
    return RequestTimeout() if silent_seconds > _STALLED_SHARE * allowed_seconds else too_slow()
