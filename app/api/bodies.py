"""The bodies that carry images: raw bytes, multipart/form-data and JSON. Parsed off the event loop."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ..errors import (
    BadRequest,
    InvalidBase64,
    InvalidParameter,
    MalformedRequest,
    ServiceError,
    TooManyImages,
    UnsupportedMediaType,
)

T = TypeVar("T")

_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]+)*;base64,", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n]+")
# Below this a hop to another thread costs more than the parsing.
_INLINE_BYTES = 8 * 1024
# Parts that are no files (a form's other fields) cost a parser time too.
_MAX_EXTRA_PARTS = 16

_SHAPE_ONE = 'Expected {"image": "<base64 or data: URL>", "top_k": 5}, where top_k may be left out.'
_SHAPE_MANY = 'Expected {"images": ["<base64 or data: URL>", …], "top_k": 5}, where top_k may be left out.'

# What a member that belongs to the other path is answered with.
_ELSEWHERE: dict[tuple[int | str, ...], str] = {
    ("images",): " Several images go to POST /predict/batch.",
    ("image",): " One image goes to POST /predict.",
}


@dataclass(frozen=True, slots=True)
class Images:
    """What a body carried: each image's bytes, or why it has none; `top_k` where the JSON says one."""

    images: tuple[bytes | ServiceError, ...]
    top_k: int | None = None


class _One(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: StrictStr
    top_k: StrictInt | None = None


class _Many(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: list[StrictStr]
    top_k: StrictInt | None = None


async def read_one(request: Request) -> Images:
    """The one image of a `/predict` body. Raises `MalformedRequest`, `InvalidBase64` or what reading raises."""
    body = await _read(request)
    kind, boundary = _content_type(request)
    if kind == "application/json":
        images = await _off_loop(body, lambda: _from_json_one(body))
    elif kind == "multipart/form-data":
        images = await _off_loop(body, lambda: Images(_from_multipart(body, boundary, 2)))
    else:
        # The bytes decide what they are: curl --data-binary calls everything a urlencoded form.
        images = Images((body,))
    if len(images.images) > 1:
        raise MalformedRequest("This path takes one image. Send several to POST /predict/batch.")
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
    body = await _read(request)
    kind, boundary = _content_type(request)
    if kind == "application/json":
        return await _off_loop(body, lambda: _from_json_many(body, max_images))
    if kind == "multipart/form-data":
        return await _off_loop(body, lambda: Images(_from_multipart(body, boundary, max_images)))
    raise UnsupportedMediaType(
        "This path takes several images: multipart/form-data with several files, or application/json. " + _SHAPE_MANY
    )


async def _read(request: Request) -> bytes:
    """The whole body; the middleware has bounded it. Raises `ClientDisconnect` where it ends too early."""
    chunks = [chunk async for chunk in request.stream()]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _content_type(request: Request) -> tuple[str, bytes]:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind.decode("latin-1").strip().lower(), options.get(b"boundary", b"")


async def _off_loop(body: bytes, parse: Callable[[], T]) -> T:
    """Megabytes are parsed on another thread: on the event loop they would hold up everybody."""
    return parse() if len(body) <= _INLINE_BYTES else await asyncio.to_thread(parse)


def _from_json_one(body: bytes) -> Images:
    document = _validated(_One, body, _SHAPE_ONE)
    return Images((_from_base64(document.image),), document.top_k)


def _from_json_many(body: bytes, max_images: int) -> Images:
    document = _validated(_Many, body, _SHAPE_MANY)
    if not document.images:
        raise MalformedRequest("The request carries no image. " + _SHAPE_MANY)
    if len(document.images) > max_images:
        raise TooManyImages(max_images)
    return Images(tuple(_decoded_or_error(text) for text in document.images), document.top_k)


_Document = TypeVar("_Document", bound=BaseModel)


def _validated(model: type[_Document], body: bytes, shape: str) -> _Document:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = {fault["loc"]: fault["type"] for fault in error.errors(include_url=False, include_input=False)}
    if "json_invalid" in faults.values():
        raise MalformedRequest("The body is not valid JSON. " + shape)
    extra = [location for location, kind in faults.items() if kind == "extra_forbidden"]
    if extra:
        elsewhere = _ELSEWHERE.get(extra[0], "")
        raise MalformedRequest("The JSON has a member that it cannot have. " + shape + elsewhere)
    if list(faults) == [("top_k",)]:
        raise InvalidParameter("top_k must be a whole number.")
    raise MalformedRequest("The JSON has the wrong shape. " + shape)


def _decoded_or_error(text: str) -> bytes | ServiceError:
    try:
        data = _from_base64(text)
    except BadRequest as error:
        return error
    return data or MalformedRequest("This image is empty.")


def _from_base64(text: str) -> bytes:
    """Base64, bare or behind a data: URL's head; line breaks, as `base64` prints them, are allowed."""
    head = _DATA_URL.match(text)
    try:
        return base64.b64decode(_SPACE.sub("", text[head.end() :] if head else text), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidBase64() from None


class _Files:
    """The callbacks that collect the files of a multipart body, from one pass of python-multipart's parser."""

    def __init__(self, max_files: int) -> None:
        self.files: list[bytes] = []
        self._max_files = max_files
        self._parts = 0
        self._name = bytearray()
        self._value = bytearray()
        self._is_file = False
        self._pieces: list[bytes] = []
        self.ended = False

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_files + _MAX_EXTRA_PARTS:
            raise MalformedRequest("The form has too many parts.")
        self._is_file, self._pieces = False, []

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if bytes(self._name).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._is_file = b"filename" in options
        self._name.clear()
        self._value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])

    def on_part_end(self) -> None:
        if self._is_file:
            if len(self.files) == self._max_files:
                raise TooManyImages(self._max_files)
            self.files.append(b"".join(self._pieces))

    def on_end(self) -> None:
        self.ended = True


def _from_multipart(body: bytes, boundary: bytes, max_files: int) -> tuple[bytes | ServiceError, ...]:
    if not boundary:
        raise MalformedRequest("The Content-Type multipart/form-data needs a boundary.")
    collected = _Files(max_files)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collected.on_part_begin,
                "on_header_field": collected.on_header_field,
                "on_header_value": collected.on_header_value,
                "on_header_end": collected.on_header_end,
                "on_part_data": collected.on_part_data,
                "on_part_end": collected.on_part_end,
                "on_end": collected.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedRequest("The multipart/form-data body is malformed.") from None
    if not collected.ended:
        raise MalformedRequest("The multipart/form-data body ends before its closing boundary.")
    if not collected.files:
        raise MalformedRequest(
            "The form carries no file. Send the image as a file, for example: curl -F image=@photo.jpg"
        )
    return tuple(data or MalformedRequest("This file is empty.") for data in collected.files)
