"""The exit status of a decoding process → the error of the image that it was decoding."""

from __future__ import annotations

import signal

from ..errors import EngineUnavailable, ImageCorrupt, ImageTooComplex, Internal, ServiceError
from .base import too_slow

# Sent by an operator, or by the kernel where memory ran out; no image causes them.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def reason_of(status: int, timeout_seconds: float) -> ServiceError:
    """`timeout_seconds` is the time that an image may take."""
    if status in _FROM_OUTSIDE:
        return EngineUnavailable("The image's decoder was stopped.", retry_after_seconds=1.0)
    if status == -signal.SIGALRM:  # its own last resort, where the service was too busy to end it
        return ImageTooComplex(too_slow(timeout_seconds))
    # A crash is a signal; any other status is a fault of ours.
    return ImageCorrupt() if status < 0 else Internal()
