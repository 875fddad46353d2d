"""JSON bodies, `{"image": "…", "top_k": 5}` and `{"images": ["…"]}`, read as they arrive.

Strings are most of such a body. The end of each is found without a parser. A long string is decoded piece by piece and
replaced by an unguessable name in the rest of the text: a small document, which pydantic then validates. Each piece of
a string also passes pydantic's own JSON parser, so that one parser decides what is JSON.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from ...errors import BadRequest, InvalidParameter, MalformedRequest, ServiceError, TooManyImages
from ..carried import Images
from ..transfer import ImageText

SHAPE_ONE = 'Expected {"image": "<base64 or data: URL>", "top_k": 5}, where top_k may be left out.'
SHAPE_MANY = 'Expected {"images": ["<base64 or data: URL>", …], "top_k": 5}, where top_k may be left out.'

# The error text for a member that belongs to the other endpoint.
_ELSEWHERE: dict[tuple[int | str, ...], str] = {
    ("images",): " Several images go to POST /predict/batch.",
    ("image",): " One image goes to POST /predict.",
}

_BOM = b"\xef\xbb\xbf"
# Shorter strings stay in the document: the names of members, and strings that are not images.
_SHORT_BYTES = 64
# Everything outside strings: braces, colons, numbers. Whitespace does not count.
_MAX_STRUCTURE_BYTES = 65_536
# Strings that are not images.
_MAX_EXTRA_STRINGS = 64
# A string with escapes is searched in windows of this size, so that no byte is searched many times.
_WINDOW_BYTES = 16_384
# The longest escape is a pair of surrogates, \uD83D\uDE00; the longest character has four bytes.
_LONGEST_ESCAPE = 12
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_UNUSUAL_SPACE = re.compile(rb"[\x0b\x0c]")


def _whole(number: Any) -> Any:
    """Accept 5.0 as a whole number, as the query and the JSON standard do."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


_WholeNumber = Annotated[StrictInt, BeforeValidator(_whole)]


class _One(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image: StrictStr
    top_k: _WholeNumber | None = None


class _Many(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: list[StrictStr]
    top_k: _WholeNumber | None = None


_Document = TypeVar("_Document", bound=BaseModel)


class JsonBody:
    """Reads one JSON body; `max_images` is None if it has to carry one image."""

    def __init__(self, max_images: int | None) -> None:
        self._max_images = max_images
        self._max_strings = (max_images or 1) + _MAX_EXTRA_STRINGS
        self._strings = 0
        self._skeleton = bytearray()
        self._structure_bytes = 0
        self._string: _String | None = None
        self._kept = b""
        self._long: dict[str, ImageText] = {}
        self._name = secrets.token_hex(8)

    def feed(self, data: bytes) -> None:
        if self._kept:
            data, self._kept = self._kept + data, b""
        at = 0
        while at < len(data):
            at = self._between(data, at) if self._string is None else self._within(self._string, data, at)

    def finish(self) -> Images:
        if self._string is not None:
            raise _not_json(self._shape)
        skeleton = bytes(self._skeleton.removeprefix(_BOM))
        if self._max_images is None:
            one = _validated(_One, skeleton)
            return Images((self._image(one.image),), one.top_k)
        many = _validated(_Many, skeleton)
        if not many.images:
            raise MalformedRequest("The request carries no image. " + SHAPE_MANY)
        if len(many.images) > self._max_images:
            raise TooManyImages(self._max_images)
        return Images(tuple(self._image_or_error(text) for text in many.images), many.top_k)

    @property
    def _shape(self) -> str:
        return SHAPE_ONE if self._max_images is None else SHAPE_MANY

    def _between(self, data: bytes, at: int) -> int:
        """Read the text up to the next string."""
        quote = data.find(b'"', at)
        piece = data[at:] if quote < 0 else data[at:quote]
        if len(piece) > _SHORT_BYTES:
            piece = self._without_much_space(piece)
        self._structure_bytes += len(piece)
        if self._structure_bytes > _MAX_STRUCTURE_BYTES:
            raise MalformedRequest("The JSON has too much beside its images. " + self._shape)
        self._skeleton += piece
        if quote < 0:
            return len(data)
        self._strings += 1
        if self._strings > self._max_strings:
            raise self._too_many_strings()
        self._string = _String()
        return quote + 1

    def _without_much_space(self, piece: bytes) -> bytes:
        if _UNUSUAL_SPACE.search(piece):  # whitespace to Python, but not to JSON
            raise _not_json(self._shape)
        begins, ends = piece[:1].isspace(), piece[-1:].isspace()
        return b" " * begins + b" ".join(piece.split()) + b" " * ends

    def _too_many_strings(self) -> ServiceError:
        """The error of a document with too many strings, from the part that has been read."""
        model = _One if self._max_images is None else _Many
        try:
            _checked(model, from_json(bytes(self._skeleton.removeprefix(_BOM)), allow_partial=True))
        except ServiceError as error:
            return error
        except ValueError:
            return _not_json(self._shape)
        return TooManyImages(self._max_images) if self._max_images else MalformedRequest(self._shape)

    def _within(self, string: _String, data: bytes, at: int) -> int:
        """Read the content of a string, up to its end."""
        quote = data.find(b'"', at)
        limit = len(data) if quote < 0 else quote
        is_all = True
        if data.find(b"\\", at, limit) < 0:
            end = quote if quote >= 0 else _end_of_characters(data, at, len(data))
        else:
            # The replacements keep all lengths, so that positions stay the same. Backslashes pair from the left.
            window = data[at : at + _WINDOW_BYTES].replace(b"\\\\", b"xx")
            is_all = at + len(window) == len(data)
            quote = window.replace(b'\\"', b"xx").find(b'"')
            end = at + (quote if quote >= 0 else _end_of_escapes(window))
        try:
            string.add(data[at:end])
        except ValueError:
            raise _not_json(self._shape) from None
        if quote >= 0:
            self._end_string(string)
            return end + 1
        if is_all:
            self._kept = data[end:]
            return len(data)
        return end

    def _end_string(self, string: _String) -> None:
        self._string = None
        if string.image is None:
            self._skeleton += b'"' + b"".join(string.pieces) + b'"'
            return
        name = f"{self._name}:{len(self._long)}"
        self._long[name] = string.image
        self._skeleton += f'"{name}"'.encode()

    def _image(self, text: str) -> bytes:
        image = self._long.pop(text, None)
        if image is None:
            image = ImageText()
            image.feed(text)
        return image.finish()

    def _image_or_error(self, text: str) -> bytes | ServiceError:
        try:
            return self._image(text) or MalformedRequest("This image is empty.")
        except BadRequest as error:
            return error.with_traceback(None)  # its frames hold the text that was read


class _String:
    """A string that is being read: kept as text while it is short, then decoded as an image."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.image: ImageText | None = None
        self._size = 0

    def add(self, piece: bytes) -> None:
        """Add a piece that ends outside an escape and a character. Raises `ValueError` if it is not JSON."""
        if not piece:
            return
        text = from_json(b'"' + piece + b'"', cache_strings="none")
        if self.image is None:
            self.pieces.append(piece)
            self._size += len(piece)
            if self._size <= _SHORT_BYTES:
                return
            self.image = ImageText()
            text = from_json(b'"' + b"".join(self.pieces) + b'"', cache_strings="none")
            self.pieces = []
        self.image.feed(text)


def _end_of_characters(data: bytes, start: int, end: int) -> int:
    """`end`, or the start of the last UTF-8 character, if that may continue behind `end`."""
    for at in range(end - 1, max(start, end - 4) - 1, -1):
        if data[at] < 0x80:
            return end
        if data[at] >= 0xC0:
            return at
    return end


def _end_of_escapes(window: bytes) -> int:
    """The end of the part of a string that cuts no escape, no surrogate pair and no character.

    In `window`, escaped backslashes are already replaced.
    """
    escape = window.find(b"\\", max(0, len(window) - _LONGEST_ESCAPE))
    if escape < 0:
        return _end_of_characters(window, 0, len(window))
    if _HIGH_SURROGATE.fullmatch(window, max(0, escape - 6), escape):
        escape -= 6
    return escape


def _validated(model: type[_Document], body: bytes) -> _Document:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _told(model, error) from None


def _checked(model: type[_Document], document: Any) -> _Document:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _told(model, error) from None


def _told(model: type[BaseModel], error: ValidationError) -> ServiceError:
    shape = SHAPE_ONE if model is _One else SHAPE_MANY
    faults = {fault["loc"]: fault["type"] for fault in error.errors(include_url=False, include_input=False)}
    if "json_invalid" in faults.values():
        return _not_json(shape)
    extra = [location for location, kind in faults.items() if kind == "extra_forbidden"]
    if extra:
        elsewhere = _ELSEWHERE.get(extra[0], "")
        return MalformedRequest("The JSON has a member that it cannot have. " + shape + elsewhere)
    if list(faults) == [("top_k",)]:
        return InvalidParameter("top_k must be a whole number.")
    return MalformedRequest("The JSON has the wrong shape. " + shape)


def _not_json(shape: str) -> MalformedRequest:
    return MalformedRequest("The body is not valid JSON. " + shape)
