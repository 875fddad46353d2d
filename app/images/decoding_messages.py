"""Messages between a decoder and one of its processes: records of a fixed size over a pair of sockets.

Images and pixels lie in shared memory (`exchange.py`). The process answers in the order in which it was asked.

    decoder → process   IMAGE (buffer, bytes of the image there)
                        PREPROCESSING (length): as many bytes of JSON follow, valid for every later image
    process → decoder   READY, once; then for each image
                        PIXELS (buffer), ERROR (buffer, bytes of JSON there),
                        or SKIPPED (buffer): the image was no longer wanted when its turn came
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import Any

from ..errors import ImageCorrupt, ImageTooComplex, ImageTooLarge, Internal, ServiceError, UnsupportedImageFormat
from ..processes.error_codec import ErrorCodec
from ..processes.framing import parse
from ..types import Interpolation, Preprocessing

RECORD = struct.Struct("<BBxxI")
"""Kind, buffer, size in bytes."""
READY = b"\x06"
IMAGE, PREPROCESSING, PIXELS, ERROR, SKIPPED = range(1, 6)
# A larger one is not an error of ours: the process is no longer trusted.
MAX_ERROR_BYTES = 4096

_ERRORS = ErrorCodec[ServiceError](Internal, UnsupportedImageFormat, ImageTooLarge, ImageTooComplex, ImageCorrupt)


def document_of(preprocessing: Preprocessing) -> bytes:
    return json.dumps({**asdict(preprocessing), "interpolation": preprocessing.interpolation.value}).encode()


def preprocessing_record(preprocessing: Preprocessing) -> bytes:
    document = document_of(preprocessing)
    return RECORD.pack(PREPROCESSING, 0, len(document)) + document


def preprocessing_of(document: bytes) -> Preprocessing:
    values: dict[str, Any] = json.loads(document)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Preprocessing(**{**values, "interpolation": Interpolation(values["interpolation"])})


def error_body(error: ServiceError) -> bytes:
    return json.dumps(_ERRORS.encode(error)).encode()


def error_of(body: bytes) -> ServiceError:
    """The error that `error_body` wrote. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
    return _ERRORS.decode(parse(body))
