"""Messages between a front-end and the engine's process: records of a fixed size, one after another.

The engine answers each `SUBMIT` with exactly one record, and until that has come the slot is the engine's. Pixels and
scores travel in the slot (`segment.py`), never here.

    front-end → engine     SUBMIT (id, slot, deadline)                  CANCEL (id): nobody waits for it any more
    engine → front-end     SCORED (id, batch size, times, activation)   FAILED (id, error, Retry-After)
                           RELEASED (id): it was cancelled              READY: warm, from now on
"""

from __future__ import annotations

import math
import struct

from ..errors import (
    DeadlineExceeded,
    Draining,
    EngineUnavailable,
    Internal,
    OutOfMemory,
    Overloaded,
    ServiceError,
    Unavailable,
)
from ..processes.error_codec import ErrorCodec
from ..types import Activation

SUBMIT, CANCEL, SCORED, FAILED, RELEASED, READY = range(1, 7)

REQUEST = struct.Struct("<BxxxIQd")
"""Kind, slot, id, deadline: an absolute CLOCK_MONOTONIC, which all processes of a machine share."""

ANSWER = struct.Struct("<BBxxIQdd")
"""Kind, detail (activation or error), batch size, id, seconds in the queue (of an error: until a new try), seconds of
inference."""

ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid", "none")

_ERRORS = ErrorCodec[ServiceError](Internal, Overloaded, DeadlineExceeded, OutOfMemory, EngineUnavailable, Draining)


def pack_error(request_id: int, error: BaseException) -> bytes:
    """A FAILED record; an error that is not one of the engine's own is sent as internal."""
    number = _ERRORS.number_of(error)
    retry_after = error.retry_after_seconds if isinstance(error, Unavailable) else None
    return ANSWER.pack(FAILED, number, 0, request_id, math.nan if retry_after is None else retry_after, 0.0)


def unpack_error(number: int, retry_after_seconds: float) -> ServiceError:
    """The error of a FAILED record."""
    kind = _ERRORS.kind(number)
    if issubclass(kind, Unavailable):
        return kind(retry_after_seconds=None if math.isnan(retry_after_seconds) else retry_after_seconds)
    return kind()
