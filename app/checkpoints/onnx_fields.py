"""Protobuf fields of an ONNX file, read in place within limits on their number and on the bytes that are copied."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

from ..protobuf import varint
from .onnx_refusal import Refused

# Copied bytes are parsed later. A ResNet-50 in 8 bits has 40 kB of them and 20,000 fields.
MAX_SKELETON_BYTES = 16 << 20
MAX_FIELDS = 500_000
BYTES = 2
"""The wire type of every value that has a length."""


@dataclass(frozen=True, slots=True)
class Field:
    number: int
    wire: int
    at: int
    """The start of its tag."""
    begin: int
    """The start of its value."""
    end: int


class FieldReader:
    """Reads fields of one file. The limits apply to all of them together."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self._fields_left = MAX_FIELDS
        self._bytes_left = MAX_SKELETON_BYTES

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message at these positions. Raises `Refused`, and ValueError for a malformed one."""
        data, position = self.data, start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise Refused(f"it consists of over {MAX_FIELDS:,} parts, which no classifier here does")
            at = position
            tag, position = varint(data, position)
            begin = position
            if tag & 7 == 0:
                _, position = varint(data, position)
            elif tag & 7 == BYTES:
                length, begin = varint(data, position)
                position = begin + length
            elif tag & 7 in (1, 5):
                position += 8 if tag & 7 == 1 else 4
            else:
                raise ValueError(f"a field has the unknown wire type {tag & 7}")
            if position > end:
                raise ValueError("a field is longer than its message")
            yield Field(tag >> 3, tag & 7, at, begin, position)

    def copy(self, part: Field) -> bytes:
        """The bytes of a field with its tag, for the part of the model that is parsed. Raises `Refused`."""
        self._bytes_left -= part.end - part.at
        if self._bytes_left < 0:
            raise Refused(f"it has over {MAX_SKELETON_BYTES:,} bytes beside its weights, which no classifier here has")
        return bytes(self.data[part.at : part.end])

    def text(self, part: Field) -> str:
        """The first 4096 bytes of a text."""
        return bytes(self.data[part.begin : min(part.end, part.begin + 4096)]).decode("utf-8", "replace")

    def numbers(self, part: Field) -> tuple[int, ...]:
        """Up to 17 varints of a field, packed or single. Negative numbers read as very large ones."""
        numbers: list[int] = []
        position = part.begin
        while position < part.end and len(numbers) <= 16:
            number, position = varint(self.data, position)
            numbers.append(number)
        return tuple(numbers)
