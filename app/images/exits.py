"""Exit statuses of decoding processes."""

from __future__ import annotations

import signal
from contextlib import suppress

from ..errors import EngineUnavailable, ImageCorrupt, ImageTooComplex, Internal, ServiceError
from .base import too_slow

# Sent by whoever runs the machine, or by the kernel where memory ran out; no image does it.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def describe_status(status: int) -> str:
    """For the log. Of a signal `status` is its number with a minus."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def reason_of(status: int, timeout_seconds: float) -> ServiceError:
    """What an exit in the middle of an image says of the image, which may take `timeout_seconds`."""
    if status in _FROM_OUTSIDE:
        return EngineUnavailable("The image's decoder was stopped.", retry_after_seconds=1.0)
    if status == -signal.SIGALRM:  # its own last resort, where the service was too busy to end it
        return ImageTooComplex(too_slow(timeout_seconds))
    # A crash is a signal; any other status is a fault of ours.
    return ImageCorrupt() if status < 0 else Internal()
