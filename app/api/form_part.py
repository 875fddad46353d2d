"""One part of a form: whether it is a file, and its content.

A part is a file

- if it has a file name: `filename`, or RFC 5987's `filename*`, which some clients send alone;
- or else if its content type is an image's or application/octet-stream;
- or else if its bytes begin as an image does, or its field has a name that is usual for images and its bytes are no
  text. Several clients name no file where they send bytes from memory.

All else is an ordinary field.
"""

from __future__ import annotations

import re

from ..errors import BadRequest, ServiceError
from .image_buffer import ImageBuffer
from .transfer import Transfer, part_transfer

# The bytes of a part that decide whether it is a file, and the bytes of an ordinary field that are kept.
_SIGNATURE_BYTES = 64
_FIELD_BYTES = 256
_SHOWN_CHARACTERS = 40
_PARAMETER = re.compile(r';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_IMAGE_TYPE = re.compile(r"image/.*|application/octet-stream|binary/octet-stream", re.DOTALL)
# JPEG, PNG, GIF, WebP; of BMP, the size of the file is behind the two letters, and two numbers that are 0 follow.
_IMAGE_START = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}", re.DOTALL)
_USUAL_NAMES = re.compile(r"(image|img|photo|picture|pic|file|upload|data|content|body)s?[0-9]*(\[[0-9]*\])?")
_TEXT = re.compile(rb"[\t\r\n\x20-\x7e\x80-\xff]*")


class Part:
    """Takes a part's content as it arrives."""

    def __init__(self, headers: dict[str, str]) -> None:
        """`headers` by their names in small letters. Raises `MalformedRequest` for an encoding that is not known."""
        disposition = header_parameters(headers.get("content-disposition", ""))
        self.name = disposition.get("name", "")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._transfer: Transfer = part_transfer(headers.get("content-transfer-encoding", ""))
        has_file_name = "filename" in disposition or "filename*" in disposition
        self.is_empty_input = not (disposition.get("filename") or disposition.get("filename*"))
        """Whether a browser sends such headers for a file input that was left empty, if there is no content either."""
        self._is_file: bool | None = has_file_name or bool(_IMAGE_TYPE.fullmatch(media_type)) or None
        self._start = b""
        self._content = ImageBuffer()
        self._size = 0
        self._error: ServiceError | None = None

    @property
    def is_file(self) -> bool:
        return bool(self._is_file)

    @property
    def shown_name(self) -> str:
        """The name as an error may repeat it: short, and plain characters."""
        return re.sub(r"[^A-Za-z0-9_.\[\] -]", "?", self.name[:_SHOWN_CHARACTERS])

    def add(self, data: bytes) -> None:
        if self._error is None and data:
            try:
                self._keep(self._transfer.feed(data))
            except BadRequest as error:
                self._error = error.with_traceback(None)
                self._content = ImageBuffer()

    def finish(self) -> bytes | ServiceError:
        """The content, or the error of its encoding; `is_file` is known from now on."""
        if self._error is None:
            try:
                self._keep(self._transfer.finish())
            except BadRequest as error:
                self._error = error.with_traceback(None)
        if self._is_file is None:
            self._decide()
        return self._error or self._content.value()

    def _keep(self, data: bytes) -> None:
        if self._is_file is None:
            self._start += data[: _SIGNATURE_BYTES - len(self._start)]
            if len(self._start) == _SIGNATURE_BYTES:
                self._decide()
        if self._is_file is False:
            data = data[: max(0, _FIELD_BYTES - self._size)]
        self._size += len(data)
        self._content.write(data)

    def _decide(self) -> None:
        is_binary = not _TEXT.fullmatch(self._start)
        is_usual = _USUAL_NAMES.fullmatch(self.name.lower()) is not None
        self._is_file = _IMAGE_START.match(self._start) is not None or (is_usual and is_binary)


def header_parameters(value: str) -> dict[str, str]:
    """A header's parameters, by their names in small letters; those of RFC 5987 (`filename*`) under their own."""
    return {name.lower(): _unquoted(text) for name, text in _PARAMETER.findall(value)}


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if value.startswith('"') else value.strip()
