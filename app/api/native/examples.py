"""The request bodies that /docs shows; each works when sent as it is."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

_RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream")
# A drawn wall clock, 640×480, made by docs/draw_example.py.
EXAMPLE_FILE = Path(__file__).parents[2] / "data" / "example.jpg"
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@cache
def example_jpeg() -> bytes:
    """The picture that the examples send."""
    return EXAMPLE_FILE.read_bytes()


def _small_base64() -> str:
    """The example picture, reduced so that its base64 fits into a text box."""
    picture = Image.open(io.BytesIO(example_jpeg()))
    picture.thumbnail((96, 96))
    target = io.BytesIO()
    picture.save(target, "WEBP", quality=40)
    return base64.b64encode(target.getvalue()).decode("ascii")


_TOP_K = {
    "type": ["integer", "null"],
    "minimum": 1,
    "description": "How many classes to answer with; at most as many as the model has.",
    "examples": [5],
}
_FORM_TOP_K = {"type": "integer", "minimum": 1, "description": "As in the query.", "examples": [5]}
_IMAGE = {"type": "string", "minLength": 1, "description": "Base64, bare or as a data: URL."}
# An empty string is an error of that image alone: the others are still classified.
_ONE_OF_MANY = {"type": "string", "description": _IMAGE["description"]}
_FILE = {
    "type": "string",
    "format": "binary",
    "description": "JPEG, PNG, WebP, GIF or BMP; any field name will do.",
}

REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "additionalProperties": False,
                "properties": {"image": _IMAGE, "top_k": _TOP_K},
            },
            "example": {"image": _small_base64(), "top_k": 5},
        },
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": _FILE, "top_k": _FORM_TOP_K}}
        },
        **{media_type: _BINARY for media_type in _RAW_TYPES},
    },
}

BATCH_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "additionalProperties": False,
                "properties": {"images": {"type": "array", "minItems": 1, "items": _ONE_OF_MANY}, "top_k": _TOP_K},
            },
            "example": {"images": [_small_base64(), _small_base64()], "top_k": 1},
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "minItems": 1, "items": _FILE}, "top_k": _FORM_TOP_K},
            }
        },
    },
}
