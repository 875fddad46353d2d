"""TensorFlow checkpoints written byte by byte, right or wrong: what TensorFlow itself would never write."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.checkpoints.tensor_bundle import MAGIC


@dataclass(frozen=True)
class Entry:
    """Where a tensor's numbers are said to lie."""

    shape: Sequence[int]
    size: int
    offset: int = 0
    shard: int = 0
    dtype: int = 1

    def encode(self) -> bytes:
        dimensions = b"".join(field(2, field(1, size)) for size in self.shape)
        message = field(1, self.dtype) + field(2, dimensions)
        return message + field(3, self.shard) + field(4, self.offset) + field(5, self.size)


def varint(number: int) -> bytes:
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def record(shared: int, key: bytes, value: bytes) -> bytes:
    """One entry of a block: how much of the key before it is kept, and what is behind that."""
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


def block(records: bytes) -> bytes:
    """With one restart point, no compression, and a checksum that nobody looks at."""
    return records + struct.pack("<II", 0, 1)


def table(blocks: Sequence[bytes], addresses: Sequence[int] | None = None) -> bytes:
    """An SSTable of these blocks; `addresses` says which are listed, in their order."""
    content, places = b"", []
    for each in blocks:
        places.append((len(content), len(each)))
        content += each + bytes(5)
    listed = range(len(blocks)) if addresses is None else addresses
    index = block(
        b"".join(
            record(0, b"%08d" % number, varint(places[which][0]) + varint(places[which][1]))
            for number, which in enumerate(listed)
        )
    )
    footer = varint(0) + varint(0) + varint(len(content)) + varint(len(index))
    return content + index + bytes(5) + footer.ljust(48 - len(MAGIC), b"\0") + MAGIC


def header(shards: int = 1) -> bytes:
    return record(0, b"", field(1, shards))


def write_index(path: Path, entries: Mapping[str, Entry], shards: int = 1) -> Path:
    """An index of these entries, which are sorted by name as they should be."""
    records = [record(0, name.encode(), entries[name].encode()) for name in sorted(entries)]
    path.write_bytes(table([block(header(shards) + b"".join(records))]))
    return path


def write_checkpoint(prefix: Path, tensors: Mapping[str, NDArray[np.float32]], shards: int = 1) -> Path:
    """A checkpoint as it should be, its tensors spread over `shards` files in turn; its index."""
    files = [bytearray() for _ in range(shards)]
    entries = {}
    for number, name in enumerate(sorted(tensors)):
        data, shard = tensors[name].tobytes(), number % shards
        entries[name] = Entry(tensors[name].shape, len(data), len(files[shard]), shard)
        files[shard] += data
    for shard, content in enumerate(files):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return write_index(prefix.with_name(f"{prefix.name}.index"), entries, shards)
