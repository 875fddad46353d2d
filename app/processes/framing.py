"""The frame of a message between processes: its length, then a JSON object.

Standard library only: programs that run without the rest of the package use it too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import IO, Any, Protocol

HEAD = struct.Struct("<IB")
"""Length of the JSON in bytes, and number of descriptors sent with it (sockets only)."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def pack(document: dict[str, Any], descriptors: int = 0) -> bytes:
    text = json.dumps(document).encode()
    return HEAD.pack(len(text), descriptors) + text


def parse(text: bytes) -> dict[str, Any]:
    """Raises `ValueError` for anything but a JSON object."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("a document that is nested too deep") from None
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    return document


def write_document(pipe: IO[bytes], document: dict[str, Any]) -> None:
    pipe.write(pack(document))


def read_document(pipe: Readable, most_bytes: int) -> dict[str, Any]:
    """Read a framed JSON object. Raises `ValueError` if there is none, or if it is longer than `most_bytes`."""
    length, _ = HEAD.unpack(read_exactly(pipe, HEAD.size))
    if length > most_bytes:
        raise ValueError(f"a document of {length:,} bytes")
    return parse(read_exactly(pipe, length))


def read_exactly(pipe: Readable, count: int) -> bytes:
    """Raises `ValueError` if the pipe ends early."""
    data = pipe.read(count)
    if len(data) != count:
        raise ValueError("the process ended early")
    return data


class Records:
    """Splits a byte stream into records of a fixed size, for messages that are too frequent for JSON."""

    def __init__(self, record: struct.Struct) -> None:
        self._record = record
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """The records completed by `data`."""
        data = self._rest + data if self._rest else data
        whole = len(data) - len(data) % self._record.size
        self._rest = data[whole:]
        return self._record.iter_unpack(data[:whole])
