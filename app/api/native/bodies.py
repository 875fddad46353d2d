"""Chooses the reader of a native body: raw bytes, multipart/form-data or JSON."""

from __future__ import annotations

import re

from ...errors import UnsupportedMediaType
from ..carried import BodyReader, Images
from ..form_part import header_parameters
from ..image_buffer import ImageBuffer
from .form_body import FormBody
from .json_body import SHAPE_MANY, SHAPE_ONE, JsonBody

_JSON_TYPE = re.compile(r"(application|text)/json|application/[^/]*\+json", re.DOTALL)
# Bodies that cannot be an image, whatever follows.
_LOOKS_LIKE_JSON = re.compile(rb'(\xef\xbb\xbf)?[ \t\r\n]{0,256}\{[ \t\r\n]{0,256}"')
_LOOKS_LIKE_FORM = re.compile(rb"--[^\r\n]{1,256}\r\ncontent-disposition:", re.IGNORECASE)


def body_reader(content_type: str, max_images: int | None) -> BodyReader:
    """The reader for a body of this Content-Type; `max_images` is None if the body has to be one image.

    The encoded text is dropped piece by piece, so that never more is held than was received. Raises
    `MalformedRequest` for an invalid form boundary.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if _JSON_TYPE.fullmatch(kind):
        return JsonBody(max_images)
    if kind == "multipart/form-data":
        return FormBody(header_parameters(content_type).get("boundary", "").encode("latin-1"), max_images)
    # The bytes decide, not the Content-Type: curl --data-binary calls every body a urlencoded form.
    return _RawBody() if max_images is None else _NoBatch()


class _RawBody:
    """A body that is the image itself."""

    def __init__(self) -> None:
        self._first = b""
        self._all: ImageBuffer | None = None

    def feed(self, data: bytes) -> None:
        if self._all is None and not self._first:
            self._first = data
            return
        if self._all is None:
            self._all = ImageBuffer()
            self._all.write(self._first)
        self._all.write(data)

    def finish(self) -> Images:
        image = self._first if self._all is None else self._all.value()
        if (told := _told_type(image, SHAPE_ONE)) is not None:
            raise UnsupportedMediaType(told)
        return Images((image,))


class _NoBatch:
    """A body that is not a batch; its first bytes may show why."""

    def __init__(self) -> None:
        self._start = b""

    def feed(self, data: bytes) -> None:
        self._start += data[: 1024 - len(self._start)]

    def finish(self) -> Images:
        raise UnsupportedMediaType(
            _told_type(self._start, SHAPE_MANY)
            or "This path takes several images: with the Content-Type multipart/form-data and several files, or with "
            "application/json. "
            + SHAPE_MANY
        )


def _told_type(body: bytes, shape: str) -> str | None:
    """The error text for a body whose Content-Type contradicts its bytes."""
    if _LOOKS_LIKE_JSON.match(body):
        return (
            "The body looks like JSON, and the Content-Type header does not say so. Send it with "
            '"Content-Type: application/json". ' + shape
        )
    if _LOOKS_LIKE_FORM.match(body):
        return (
            "The body looks like a form, and the Content-Type header does not say so. Send it with "
            '"Content-Type: multipart/form-data; boundary=…", as HTTP clients set it by themselves.'
        )
    return None
