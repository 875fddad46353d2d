"""Messages between a front-end and the engine's process: records of a fixed size, one after another.

The engine answers each `SUBMIT` with exactly one record, and until that has come the slot is the engine's. Inputs and
scores travel in the slot (`segment.py`). Features and feature maps follow their record: few ask for them, and how large
they are is not known when the slots are made.

    front-end → engine     SUBMIT (id, slot, input, want, deadline)     CANCEL (id): nobody waits for it any more
    engine → front-end     SCORED (id, batch size, times, activation)   FAILED (id, error, Retry-After)
                           EXTENDED: as SCORED, then `SHAPES` and the values
                           RELEASED (id): it was cancelled              READY: warm, from now on
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from ..errors import (
    DeadlineExceeded,
    Draining,
    EngineUnavailable,
    FeaturesNotAvailable,
    Internal,
    OutOfMemory,
    Overloaded,
    ServiceError,
    TensorsNotAvailable,
    Unavailable,
)
from ..processes.error_codec import ErrorCodec
from ..types import Activation, FeatureMaps, Features, InputSpec, Outputs, Want

SUBMIT, CANCEL, SCORED, FAILED, RELEASED, READY, EXTENDED = range(1, 8)

REQUEST = struct.Struct("<BBBxIQd")
"""Kind, input, want, slot, id, deadline: an absolute CLOCK_MONOTONIC, which all processes of a machine share."""

ANSWER = struct.Struct("<BBxxIQdd")
"""Kind, detail (activation or error), batch size, id, seconds in the queue (of an error: until a new try), seconds of
inference."""

SHAPES = struct.Struct("<IIII")
"""Of features C, of feature maps C, h and w; 0 where there are none. Then the values of both, float32."""

ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid", "none")
INPUTS = tuple(InputSpec)

_ERRORS = ErrorCodec[ServiceError](
    Internal,
    Overloaded,
    DeadlineExceeded,
    OutOfMemory,
    EngineUnavailable,
    Draining,
    FeaturesNotAvailable,
    TensorsNotAvailable,
)


class Answer(NamedTuple):
    """One record of the engine's, and what followed it."""

    kind: int
    detail: int
    batch_size: int
    request_id: int
    seconds: float
    inference_seconds: float
    features: Features | None = None
    feature_maps: FeatureMaps | None = None


def pack_submit(request_id: int, slot: int, spec: InputSpec, want: Want, deadline: float) -> bytes:
    return REQUEST.pack(SUBMIT, INPUTS.index(spec), want.value, slot, request_id, deadline)


def is_known(spec: int, want: int) -> bool:
    """Whether the numbers of a SUBMIT are ones that `pack_submit` writes."""
    return spec < len(INPUTS) and 0 < want <= (~Want(0)).value


def pack_scored(request_id: int, outputs: Outputs, batch_size: int, seconds: float, inference_seconds: float) -> bytes:
    """A SCORED or an EXTENDED record; the scores travel in the slot."""
    features, maps = outputs.features, outputs.feature_maps
    is_plain = features is None and maps is None
    record = ANSWER.pack(
        SCORED if is_plain else EXTENDED,
        ACTIVATIONS.index(outputs.activation),
        batch_size,
        request_id,
        seconds,
        inference_seconds,
    )
    if is_plain:
        return record
    shapes = SHAPES.pack(0 if features is None else len(features), *((0, 0, 0) if maps is None else maps.shape))
    return b"".join([record, shapes, *(part.tobytes() for part in (features, maps) if part is not None)])


def take_answers(received: bytearray) -> list[Answer]:
    """The answers that have come whole, taken out of `received`."""
    answers, at = [], 0
    while len(received) - at >= ANSWER.size:
        fields = ANSWER.unpack_from(received, at)
        end = at + ANSWER.size
        features = maps = None
        if fields[0] == EXTENDED:
            if len(received) - end < SHAPES.size:
                break
            count, *shape = SHAPES.unpack_from(received, end)
            end += SHAPES.size
            size = math.prod(shape)
            if len(received) - end < 4 * (count + size):
                break
            values = np.frombuffer(bytes(received[end : end + 4 * (count + size)]), np.float32)
            features = values[:count] if count else None
            maps = values[count:].reshape(shape) if size else None
            end += 4 * (count + size)
        answers.append(Answer._make((*fields, features, maps)))
        at = end
    del received[:at]
    return answers


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
