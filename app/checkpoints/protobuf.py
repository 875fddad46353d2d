"""Protobuf's wire format, as far as the messages of checkpoints need it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator


def varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """A base-128 number (protobuf's encoding), and where it ends."""
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
    """The fields of a protobuf message: number, and an integer or bytes."""
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


def spans(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """Where the fields of a message lie: number, where its tag begins, where its value begins, and where it ends."""
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


def field_head(number: int, length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    return _written(number << 3 | 2) + _written(length)


def bytes_field(number: int, value: bytes) -> bytes:
    return field_head(number, len(value)) + value


def _written(number: int) -> bytes:
    """A base-128 number."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def messages(message: bytes, wanted: int) -> Iterator[bytes]:
    """The values of the field `wanted` that are messages, texts or bytes."""
    for number, value in fields(message):
        if number == wanted and isinstance(value, bytes):
            yield value
