"""What a decoding process and its parent say to each other: records of a fixed size over a pair of sockets, no pickle.

Images and pixels are in memory that both have (`exchange.py`); the process answers in the order in which it was asked.

    parent → process   IMAGE (place, bytes of the image there)
                       PREPROCESSING (length): as many bytes of JSON follow, which hold for all images behind it
    process → parent   READY, once; then for each image
                       PIXELS (place), ERROR (place, bytes of JSON there: an error's code and detail),
                       or SKIPPED (place): it was no longer wanted when its turn came
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import Any

from ..errors import ImageCorrupt, ImageTooComplex, ImageTooLarge, Internal, ServiceError, UnsupportedImageFormat
from ..types import Interpolation, Preprocessing

RECORD = struct.Struct("<BBxxI")
"""Kind, place, size in bytes."""
READY = b"\x06"
IMAGE, PREPROCESSING, PIXELS, ERROR, SKIPPED = range(1, 6)
# An answer that claims more is no error of ours: the process is not to be believed.
MAX_ERROR_BYTES = 4096

_ERRORS: dict[str, type[ServiceError]] = {
    error.code: error for error in (UnsupportedImageFormat, ImageTooLarge, ImageTooComplex, ImageCorrupt)
}


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
    return json.dumps({"code": error.code, "detail": error.detail}).encode()


def error_of(body: bytes) -> ServiceError:
    """The error that a body stands for; `Internal` for a code that decoding does not have."""
    document = json.loads(body)
    kind = _ERRORS.get(document["code"])
    return Internal() if kind is None else kind(document["detail"])
