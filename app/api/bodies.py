"""The bodies that carry images: raw bytes, multipart/form-data and JSON, each read as it arrives.

A piece is parsed when it is received, on the event loop: that takes about a millisecond, while a thread that parses a
whole body holds the interpreter's lock against everybody for as long. What was encoded is dropped with its piece, so
that no more is held than was received.
"""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request

from ..errors import MalformedRequest, ServiceError, UnsupportedMediaType
from .carried import BodyReader, Images
from .form_body import FormBody
from .form_part import header_parameters
from .image_buffer import ImageBuffer
from .json_body import SHAPE_MANY, SHAPE_ONE, JsonBody

# What is parsed at once: about half a millisecond.
_PIECE_BYTES = 128 * 1024
_JSON_TYPE = re.compile(r"(application|text)/json|application/[^/]*\+json", re.DOTALL)
# Bodies that are no image, whatever follows.
_LOOKS_LIKE_JSON = re.compile(rb'(\xef\xbb\xbf)?[ \t\r\n]{0,256}\{[ \t\r\n]{0,256}"')
_LOOKS_LIKE_FORM = re.compile(rb"--[^\r\n]{1,256}\r\ncontent-disposition:", re.IGNORECASE)


async def read_one(request: Request) -> Images:
    """The one image of a `/predict` body. Raises `MalformedRequest`, `InvalidBase64` or what reading raises."""
    images = await _read(request, None)
    if isinstance(error := images.images[0], ServiceError):
        raise error
    if not images.images[0]:
        raise MalformedRequest(
            "The request carries no image. Send its bytes as the body, or as a form's file, or in JSON."
        )
    return images


async def read_many(request: Request, max_images: int) -> Images:
    """The images of a `/predict/batch` body, at least one.

    Raises `MalformedRequest`, `TooManyImages` or `UnsupportedMediaType`.
    """
    return await _read(request, max_images)


async def _read(request: Request, max_images: int | None) -> Images:
    """Read a body to its end, which the middleware has bounded. Raises `ClientDisconnect` where it ends too early.

    What is wrong with it is said when it has come whole: a client that still sends may not see an earlier answer.
    """
    reader: BodyReader | None = None
    failure: ServiceError | None = None
    try:
        reader = _reader(request, max_images)
    except ServiceError as error:
        failure = error.with_traceback(None)
    async for chunk in request.stream():
        for at in range(0, len(chunk), _PIECE_BYTES):
            if at:
                await asyncio.sleep(0)
            if reader is not None:
                try:
                    reader.feed(chunk if len(chunk) <= _PIECE_BYTES else chunk[at : at + _PIECE_BYTES])
                except ServiceError as error:
                    # Without its frames, which hold the body, and this one, which holds the error.
                    failure, reader = error.with_traceback(None), None
    if reader is None:
        assert failure is not None
        raise failure
    return reader.finish()


def _reader(request: Request, max_images: int | None) -> BodyReader:
    header = request.headers.get("content-type", "")
    kind = header.partition(";")[0].strip().lower()
    if _JSON_TYPE.fullmatch(kind):
        return JsonBody(max_images)
    if kind == "multipart/form-data":
        return FormBody(header_parameters(header).get("boundary", "").encode("latin-1"), max_images)
    # The bytes decide what they are: curl --data-binary calls everything a urlencoded form.
    return _RawBody() if max_images is None else _NoBatch()


class _RawBody:
    """An image as it is."""

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
    """A body that carries no batch, of which the beginning may say why."""

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
    """What to tell a client whose Content-Type hides what its body is."""
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
