"""Base64, percent-encoding and quoted-printable, decoded piece by piece.

Each call handles one piece of a body, so that none holds the interpreter's lock for long, and the bytes of an image
grow in a buffer that becomes its `bytes` without a copy.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from typing import Protocol

from ..errors import InvalidBase64, MalformedRequest
from .image_buffer import ImageBuffer

_SPACE = b" \t\r\n"
# The longest media type and parameters of a data: URL, which precede the image.
_MAX_URL_HEAD = 4096
_HEX_CLASSES = bytes(
    0x68 if byte in b"0123456789abcdefABCDEF" else 0x25 if byte == 0x25 else 0x78 for byte in range(256)
)


# The start of a data: URL → the end of its head. Both may be percent-encoded.
_COMMAS = {"data:": re.compile(","), "data%3a": re.compile("%2c", re.IGNORECASE)}


class Transfer(Protocol):
    """Decodes one transfer encoding."""

    def feed(self, data: bytes) -> bytes:
        """Decode `data`, with the rest kept from earlier pieces."""

    def finish(self) -> bytes:
        """Decode the kept rest. Raises a `ServiceError` if the text ends too early."""


class Plain:
    """Bytes as they are."""

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class Base64:
    """RFC 4648's base64, with padding; line breaks and spaces are ignored. Raises `InvalidBase64`."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        data = self._kept + data.translate(None, _SPACE)
        # The last group is kept until the end, the only place where padding is allowed.
        whole = max(0, len(data) - 1) // 4 * 4
        self._kept = data[whole:]
        if data.find(b"=", 0, whole) >= 0:
            raise InvalidBase64()
        return _decoded(data[:whole])

    def finish(self) -> bytes:
        return _decoded(self._kept)


class Percent:
    """RFC 3986's percent-encoding. Raises `InvalidBase64`, because only data: URLs use it."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        data = self._kept + data
        sign = data.rfind(b"%", max(0, len(data) - 2))
        whole = len(data) if sign < 0 else sign
        self._kept, data = data[whole:], data[:whole]
        signs = data.count(b"%")
        if not signs:
            return data
        if data.translate(_HEX_CLASSES).count(b"%hh") != signs:
            raise InvalidBase64()
        # Quoted-printable is the same encoding with another escape character, and Python decodes it in C.
        return binascii.a2b_qp(data.replace(b"=", b"=3D").replace(b"%", b"="))

    def finish(self) -> bytes:
        if self._kept:
            raise InvalidBase64()
        return b""


class QuotedPrintable:
    """RFC 2045's quoted-printable; text that is not an escape is unchanged."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> bytes:
        data = self._kept + data
        sign = data.rfind(b"=", max(0, len(data) - 2))
        whole = len(data) if sign < 0 else sign
        self._kept = data[whole:]
        return binascii.a2b_qp(data[:whole])

    def finish(self) -> bytes:
        return binascii.a2b_qp(self._kept)


# A part's Content-Transfer-Encoding → its decoder (RFC 2045, section 6).
_PART_ENCODINGS: dict[str, Callable[[], Transfer]] = {
    "": Plain,
    "7bit": Plain,
    "8bit": Plain,
    "binary": Plain,
    "base64": Base64,
    "quoted-printable": QuotedPrintable,
}


def part_transfer(encoding: str) -> Transfer:
    """The decoder for a form part's Content-Transfer-Encoding. Raises `MalformedRequest` for an unknown one."""
    make = _PART_ENCODINGS.get(encoding.strip().lower())
    if make is None:
        raise MalformedRequest(
            "A part of the form has a Content-Transfer-Encoding other than binary, 8bit, 7bit, base64 and "
            "quoted-printable. Send the file as it is, without one."
        )
    return make()


class ImageText:
    """One image as text: base64, bare or as a data: URL, which may be percent-encoded.

    `finish` raises its error, so that one bad image does not stop the reading of the others.
    """

    def __init__(self) -> None:
        self._image = ImageBuffer()
        self._head: str | None = ""
        self._steps: list[Transfer] = []
        self._error: InvalidBase64 | None = None

    def feed(self, text: str) -> None:
        if self._error is None:
            try:
                self._take(text)
            except InvalidBase64 as error:
                self._fail(error)

    def finish(self) -> bytes:
        """The image's bytes. Raises `InvalidBase64`."""
        if self._error is None:
            try:
                if self._head is not None:
                    self._begin(self._head, is_whole=True)
                kept = b""
                for step in self._steps:
                    kept = (step.feed(kept) if kept else b"") + step.finish()
                self._image.write(kept)
            except InvalidBase64 as error:
                self._fail(error)
        if self._error is not None:
            told, self._error = self._error, None  # otherwise the error would hold itself, through its frames
            raise told
        return self._image.value()

    def _take(self, text: str) -> None:
        if self._head is not None:
            self._begin(self._head + text)
            return
        try:
            data = text.encode("ascii")
        except UnicodeEncodeError:
            raise InvalidBase64() from None
        for step in self._steps:
            data = step.feed(data)
        self._image.write(data)

    def _begin(self, text: str, is_whole: bool = False) -> None:
        """Decide between base64 and a data: URL, once enough characters have arrived."""
        start = text[:7].lower()
        comma = _COMMAS.get(start[:5]) or _COMMAS.get(start)
        if comma is None and (is_whole or len(start) == 7):
            self._steps, payload = [Base64()], text
        elif comma is None:
            self._head = text
            return
        else:
            found = comma.search(text, 0, _MAX_URL_HEAD)
            if found is None and not is_whole and len(text) < _MAX_URL_HEAD:
                self._head = text
                return
            parameters = text[: found.start()].lower().replace("%3b", ";") if found else ""
            if found is None or not parameters.endswith(";base64") or ";;" in parameters:
                raise InvalidBase64()
            self._steps, payload = [Percent(), Base64()], text[found.end() :]
        self._head = None
        self._take(payload)

    def _fail(self, error: InvalidBase64) -> None:
        self._error = error.with_traceback(None)
        self._image = ImageBuffer()
        self._steps, self._head = [], None


def _decoded(data: bytes) -> bytes:
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        raise InvalidBase64() from None
