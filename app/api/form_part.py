"""One part of a form: whether it is a file, and its content.

A part is a file

- if it has a file name: `filename`, or RFC 5987's `filename*`, which some clients send without `filename`;
- or if its content type is an image's or application/octet-stream;
- or if its bytes begin like an image, or its field has a usual name for images and its bytes are not text. Several
  clients send no file name for bytes from memory.

Every other part is an ordinary field.
"""

from __future__ import annotations

import re

from ..errors import BadRequest, ServiceError
from .image_buffer import ImageBuffer
from .transfer import Transfer, part_transfer

# The first bytes of a part, which decide whether it is a file, and the bytes of an ordinary field that are kept.
_SIGNATURE_BYTES = 64
_FIELD_BYTES = 256
_SHOWN_CHARACTERS = 40
_PARAMETER = re.compile(r';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_IMAGE_TYPE = re.compile(r"image/.*|application/octet-stream|binary/octet-stream", re.DOTALL)
# JPEG, PNG, GIF, WebP and BMP. A BMP's two letters are followed by the size of the file and two fields that are 0.
_IMAGE_START = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}", re.DOTALL)
_USUAL_NAMES = re.compile(r"(image|img|photo|picture|pic|file|upload|data|content|body)s?[0-9]*(\[[0-9]*\])?")
_TEXT = re.compile(rb"[\t\r\n\x20-\x7e\x80-\xff]*")


class Part:
    """Reads a part's content as it arrives."""

    def __init__(self, headers: dict[str, str]) -> None:
        """`headers` by lower-case names. Raises `MalformedRequest` for an unknown encoding."""
        disposition = header_parameters(headers.get("content-disposition", ""))
        self.name = disposition.get("name", "")
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._transfer: Transfer = part_transfer(headers.get("content-transfer-encoding", ""))
        has_file_name = "filename" in disposition or "filename*" in disposition
        self.is_empty_input = not (disposition.get("filename") or disposition.get("filename*"))
        """Whether these are the headers that a browser sends for an empty file input (which also has no content)."""
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
        """The name as errors show it: short, plain characters only."""
        return re.sub(r"[^A-Za-z0-9_.\[\] -]", "?", self.name[:_SHOWN_CHARACTERS])

    def add(self, data: bytes) -> None:
        if self._error is None and data:
            try:
                self._keep(self._transfer.feed(data))
            except BadRequest as error:
                self._error = error.with_traceback(None)
                self._content = ImageBuffer()

    def finish(self) -> bytes | ServiceError:
        """The content, or the error of its encoding. From then on `is_file` is known."""
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
    """A header's parameters by lower-case names; those of RFC 5987 keep their asterisk (`filename*`)."""
    return {name.lower(): _unquoted(text) for name, text in _PARAMETER.findall(value)}


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if value.startswith('"') else value.strip()
