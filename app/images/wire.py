"""What a decoding process and its parent say to each other, over a pair of sockets: lengths and bytes, no pickle.

parent → process   length of the document, length of the image (u32 each), the document (JSON: the preprocessing),
                   the image
process → parent   READY, once; then for each image a kind (u8), a length (u32) and as many bytes: the pixels, or
                   JSON of an error's code and detail
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import Any

from ..errors import ImageCorrupt, ImageTooComplex, ImageTooLarge, Internal, ServiceError, UnsupportedImageFormat
from ..types import Interpolation, Preprocessing

REQUEST = struct.Struct("<II")
ANSWER = struct.Struct("<BI")
READY = b"\x06"
PIXELS, ERROR = 0, 1
# An answer that claims more is no error of ours: the process is not to be believed.
MAX_ERROR_BYTES = 4096

_ERRORS: dict[str, type[ServiceError]] = {
    error.code: error for error in (UnsupportedImageFormat, ImageTooLarge, ImageTooComplex, ImageCorrupt)
}


def request_head(data: bytes, preprocessing: Preprocessing) -> bytes:
    """What precedes the image."""
    document = document_of(preprocessing)
    return REQUEST.pack(len(document), len(data)) + document


def document_of(preprocessing: Preprocessing) -> bytes:
    return json.dumps({**asdict(preprocessing), "interpolation": preprocessing.interpolation.value}).encode()


def preprocessing_of(document: bytes) -> Preprocessing:
    values: dict[str, Any] = json.loads(document)
    for name in ("crop", "mean", "std"):
        values[name] = tuple(values[name])
    return Preprocessing(**{**values, "interpolation": Interpolation(values["interpolation"])})


def error_body(error: ServiceError) -> bytes:
    return json.dumps({"code": error.code, "detail": error.detail}).encode()


def error_of(body: bytes | bytearray) -> ServiceError:
    """The error that a body stands for; `Internal` for a code that decoding does not have."""
    document = json.loads(body)
    kind = _ERRORS.get(document["code"])
    return Internal() if kind is None else kind(document["detail"])
