"""LevelDB's table format (doc/table_format.md) of sorted keys and values, which TensorFlow's indices use.

A table consists of blocks of keys with shared prefixes, and a footer with the address of the block of block addresses.
The work for a hostile table is bounded: no block is read twice, keys are short, and they must be sorted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError
from ..protobuf import varint

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression type and checksum behind each block
_MAX_KEY_BYTES = 1_024
_MAX_VALUE_BYTES = 4_096


def read_table(table: bytes, index: Path) -> Iterator[tuple[bytes, bytes]]:
    """Sorted keys and values. Raises `ValueError`, `IndexError` or `struct.error` for damage.

    Raises `CheckpointError` for a compressed table.
    """
    footer = table[-FOOTER_BYTES:]
    position = _skip_handle(footer, 0)  # the metaindex, which TensorFlow leaves empty
    end, before = 0, None
    for _, address in _block(table, *_handle(footer, position), index):
        offset, size = _handle(address, 0)
        if offset < end:
            raise ValueError("its blocks overlap")
        end = offset + size + _TRAILER_BYTES
        for key, value in _block(table, offset, size, index):
            if before is not None and key <= before:
                raise ValueError("its keys are not sorted")
            before = key
            yield key, value


def _block(table: bytes, offset: int, size: int, index: Path) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block."""
    if offset + size + _TRAILER_BYTES > len(table):
        raise ValueError("a block lies outside the file")
    if table[offset + size] != 0:
        raise CheckpointError(f"{index} is compressed, which TensorFlow's own checkpoints are not. Save it again.")
    block = table[offset : offset + size]
    (restarts,) = struct.unpack_from("<I", block, size - 4)
    end = size - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block's restart points do not fit")
    key, position = b"", 0
    while position < end:
        shared, position = varint(block, position)
        fresh, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + fresh + length > end:
            raise ValueError("an entry does not fit its block")
        if shared + fresh > _MAX_KEY_BYTES or length > _MAX_VALUE_BYTES:
            raise ValueError("it has keys or entries that are longer than a network's")
        key = key[:shared] + block[position : position + fresh]
        position += fresh
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int) -> tuple[int, int]:
    """The address of a block: offset and size."""
    offset, position = varint(data, position)
    size, _ = varint(data, position)
    return offset, size


def _skip_handle(data: bytes, position: int) -> int:
    _, position = varint(data, position)
    _, position = varint(data, position)
    return position
