"""multipart/form-data bodies (RFC 7578), read as they arrive.

Python's work for each byte is bounded: boundaries are found by `bytes.find`, and every item that takes a step (a part,
a header, a line that only looks like a boundary) is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ...errors import InvalidParameter, MalformedRequest, ServiceError, TooManyImages
from ..carried import ONE_IMAGE, Images
from ..form_part import Part

# Parts that are not images: a form's other fields.
_MAX_EXTRA_PARTS = 16
_MAX_BOUNDARY_BYTES = 256
_MAX_HEADER_BYTES = 8192
_MAX_HEADERS = 32
# Lines that begin like a boundary and continue differently; RFC 2046 forbids them within a part.
_MAX_LIKE_BOUNDARIES = 1000
_PADDING = re.compile(rb"[ \t]{0,256}\r\n")
_PADDING_BEGINS = re.compile(rb"[ \t]{0,256}\r?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:[ \t]*(.*)", re.DOTALL)
# A field that browsers add by themselves.
_BROWSERS_OWN = "_charset_"
_MALFORMED = "The multipart/form-data body is malformed."
_CUT_SHORT = "The multipart/form-data body ends before its closing boundary."
_NO_FILE = (
    "The form carries no file: no part has a file name, an image's content type or an image's bytes. Send the image as "
    "a file, for example: curl -F image=@photo.jpg"
)
_EMPTY_INPUT = (
    "The form carries no file: its file input was left empty. Send the image as a file, for example: "
    "curl -F image=@photo.jpg"
)


class FormBody:
    """Reads one form; `max_images` is None if the form has to carry one image."""

    def __init__(self, boundary: bytes, max_images: int | None) -> None:
        """Raises `MalformedRequest` for an invalid boundary."""
        if not boundary:
            raise MalformedRequest("The Content-Type multipart/form-data needs a boundary.")
        if len(boundary) > _MAX_BOUNDARY_BYTES:
            raise MalformedRequest(_MALFORMED)
        self._max_images = max_images
        self._delimiter = b"\r\n--" + boundary
        # The first boundary follows no line, or a preamble, which is ignored.
        self._data, self._at = b"\r\n", 0
        self._step: Callable[[], bool] = self._preamble
        self._before_delimiter = self._step
        self._like_boundaries = 0
        self._parts = 0
        self._part: Part | None = None
        self._images: list[bytes | ServiceError] = []
        self._top_k: int | None = None
        self._unknown: str | None = None
        self._has_empty_input = False

    def feed(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data
        self._at = 0
        while self._step():
            pass

    def finish(self) -> Images:
        if self._step != self._epilogue:
            raise MalformedRequest(_MALFORMED if self._parts == 0 else _CUT_SHORT)
        if not self._images:
            raise MalformedRequest(_EMPTY_INPUT if self._has_empty_input else _NO_FILE)
        if self._unknown is not None:
            raise MalformedRequest(
                f'The form has a field that is not known: "{self._unknown}". Beside its images it may have top_k.'
            )
        return Images(tuple(self._images), self._top_k)

    # --- the steps: each consumes a part of the data, and returns whether another step can follow

    def _preamble(self) -> bool:
        found = self._data.find(self._delimiter, self._at)
        if found < 0:
            self._at = max(self._at, len(self._data) - len(self._delimiter) + 1)
            return False
        return self._delimited(found)

    def _delimited(self, found: int) -> bool:
        self._at = found + len(self._delimiter)
        self._before_delimiter, self._step = self._step, self._behind_delimiter
        return True

    def _behind_delimiter(self) -> bool:
        if self._data.startswith(b"--", self._at):
            self._end_part()
            self._step = self._epilogue
            return True
        padding = _PADDING.match(self._data, self._at)
        if padding is not None:
            self._end_part()
            self._at = padding.end()
            self._step = self._headers
            return True
        begun = _PADDING_BEGINS.match(self._data, self._at)
        if (begun is not None and begun.end() == len(self._data)) or self._data[self._at :] == b"-":
            return False
        return self._no_delimiter()

    def _no_delimiter(self) -> bool:
        """The line began like a boundary and belongs to the text before it."""
        self._like_boundaries += 1
        if self._like_boundaries > _MAX_LIKE_BOUNDARIES:
            raise MalformedRequest(_MALFORMED)
        if self._part is not None:
            self._part.add(self._delimiter)
        self._step = self._before_delimiter
        return True

    def _headers(self) -> bool:
        if self._data.startswith(b"\r\n", self._at):
            end, head = self._at + 2, b""
        else:
            found = self._data.find(b"\r\n\r\n", self._at, self._at + _MAX_HEADER_BYTES)
            if found < 0:
                if len(self._data) - self._at >= _MAX_HEADER_BYTES:
                    raise MalformedRequest(_MALFORMED)
                return False
            end, head = found + 4, self._data[self._at : found]
        self._begin_part(head)
        self._at = end
        self._step = self._content
        return True

    def _content(self) -> bool:
        assert self._part is not None
        found = self._data.find(self._delimiter, self._at)
        end = found if found >= 0 else max(self._at, len(self._data) - len(self._delimiter) + 1)
        self._part.add(self._data[self._at : end])
        self._at = end
        return found >= 0 and self._delimited(found)

    def _epilogue(self) -> bool:
        self._data, self._at = b"", 0
        return False

    # --- the parts

    def _begin_part(self, head: bytes) -> None:
        self._parts += 1
        if self._parts > (self._max_images or 1) + _MAX_EXTRA_PARTS:
            raise MalformedRequest("The form has too many parts.")
        lines = head.split(b"\r\n") if head else []
        if len(lines) > _MAX_HEADERS:
            raise MalformedRequest(_MALFORMED)
        headers: dict[str, str] = {}
        for line in lines:
            header = _HEADER.fullmatch(line)
            if header is None:
                raise MalformedRequest(_MALFORMED)
            headers[header[1].decode("ascii").lower()] = header[2].decode("latin-1")
        self._part = Part(headers)

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        content = part.finish()
        if part.is_file:
            if part.is_empty_input and content == b"":
                self._has_empty_input = True
                return
            if len(self._images) == (self._max_images or 1):
                raise TooManyImages(self._max_images) if self._max_images else MalformedRequest(ONE_IMAGE)
            self._images.append(content or MalformedRequest("This file is empty."))
        elif isinstance(content, ServiceError):
            raise content
        elif part.name == "top_k":
            self._set_top_k(content)
        elif content.strip() and part.name != _BROWSERS_OWN and self._unknown is None:
            self._unknown = part.shown_name

    def _set_top_k(self, content: bytes) -> None:
        top_k = whole_number(content)
        if self._top_k not in (None, top_k):
            raise InvalidParameter("The form has two top_k that contradict each other.")
        self._top_k = top_k


def whole_number(content: bytes) -> int | None:
    """A form's number, parsed like the query's; None if the field was left empty."""
    text = content.decode("latin-1").strip()
    if not text:
        return None
    number = re.fullmatch(r"([+-]?[0-9]{1,18})(?:\.0*)?", text)
    if number is None:
        raise InvalidParameter("top_k must be a whole number.")
    return int(number[1])
