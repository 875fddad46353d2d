"""Protobuf's wire format: varints and fields, read from bytes and written to bytes, without message classes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator


def varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """The varint (base-128 number) at `position`, and the position behind it."""
    number = shift = 0
    while shift < 64:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
    raise ValueError("a number has too many bytes")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field. Values with a length are bytes, all others are integers."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = varint(message, position)
            yield number, value
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            yield number, int.from_bytes(message[position : position + width], "little")
            position += width
        elif wire == 2:
            length, position = varint(message, position)
            if position + length > len(message):
                raise ValueError("a field is longer than its message")
            yield number, message[position : position + length]
            position += length
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")


def messages(message: bytes, wanted: int) -> Iterator[bytes]:
    """The values of the fields numbered `wanted` that are messages, texts or bytes."""
    for number, value in fields(message):
        if number == wanted and isinstance(value, bytes):
            yield value


def spans(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """The position of each field: its number, the start of its tag, the start of its value, and its end."""
    position = 0
    while position < len(data):
        at = position
        tag, begin = varint(data, position)
        wire = tag & 7
        if wire == 0:
            _, position = varint(data, begin)
        elif wire in (1, 5):
            position = begin + (8 if wire == 1 else 4)
        elif wire == 2:
            length, begin = varint(data, begin)
            position = begin + length
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")
        if position > len(data):
            raise ValueError("a field is longer than its message")
        yield tag >> 3, at, begin, position


def varint_bytes(number: int) -> bytes:
    """A number that is not negative, as a varint."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def number_field(number: int, value: int) -> bytes:
    """A field whose value is a varint."""
    return varint_bytes(number << 3) + varint_bytes(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field whose value is a message, text or bytes."""
    return field_head(number, len(value)) + value


def field_head(number: int, length: int) -> bytes:
    """The tag and length in front of a value of `length` bytes."""
    return varint_bytes(number << 3 | 2) + varint_bytes(length)
