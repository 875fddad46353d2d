"""TensorFlow's checkpoints, TF1 and TF2, without TensorFlow: an index of protobuf records, and files of raw numbers.

The index is an SSTable (LevelDB's table format, doc/table_format.md): blocks of sorted keys with shared prefixes, and a
footer that says where the block of block addresses is. Each value is a `BundleEntryProto`, and the first, under the
empty key, a `BundleHeaderProto` (tensorflow/core/protobuf/tensor_bundle.proto).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Stored, Weights
from .object_graph import OBJECT_GRAPH, read_object_graph
from .protobuf import fields, varint

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression type and checksum behind each block
_MAX_INDEX_BYTES = 16 * 1024 * 1024
_MAX_TENSORS = 10_000
_DATA_FILE = re.compile(r"\.data-\d{5}-of-\d{5}$")

# tensorflow/core/framework/types.proto; bfloat16 (14) is widened by hand, since numpy has none.
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
    19: np.dtype("<f2"),
}
_BFLOAT16 = 14
_STRING = 7
# Keys of what training keeps beside a model in a graph of objects: optimizers, their slots, metrics.
_NO_WEIGHT = re.compile(r"(?:^|/)(?:_?optimizer|keras_api)/|/\.OPTIMIZER_SLOT/")
_MAX_OBJECT_GRAPH_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class _Entry:
    """Where a tensor's numbers lie."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    is_sliced: bool = False


def is_tensor_bundle(head: bytes, tail: bytes) -> bool:
    """Whether the file ends as an SSTable does."""
    return len(tail) >= _FOOTER_BYTES and tail.endswith(MAGIC)


def data_files(index: Path) -> list[Path]:
    """The files that hold the numbers of `index`, in the order of their shards."""
    stem = index.name.removesuffix(".index")
    return sorted(
        path for path in index.parent.iterdir() if path.name.startswith(stem) and _DATA_FILE.search(path.name)
    )


def read_tensor_bundle(index: Path) -> Stored:
    """The float tensors of a checkpoint, under the names they were saved with.

    `index` is its `.index` file; the `.data-…` files lie beside it. Strings and integers (object graphs, step counters)
    are left out. TF2 saves a variable by its place in a graph of objects, which also has its name: that is taken.

    Raises `CheckpointError` where a file is missing, damaged, compressed or partitioned.
    """
    try:
        entries = _read_index(index)
        return Stored(_named(index, _read_tensors(index, entries), _object_names(index, entries)))
    except (struct.error, IndexError, ValueError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(
            f"{index} is a damaged TensorFlow checkpoint ({error}). Copy it again, all files of it."
        ) from None


def _read_index(index: Path) -> dict[str, _Entry]:
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} is over {_MAX_INDEX_BYTES:,} bytes, which no ResNet's index is.")
    table = index.read_bytes()
    footer = table[-_FOOTER_BYTES:]
    position = _skip_handle(footer, 0)  # the metaindex, which TensorFlow leaves empty
    blocks = _block(table, *_handle(footer, position), index)
    entries: dict[str, _Entry] = {}
    for _, address in blocks:
        for key, value in _block(table, *_handle(address, 0), index):
            if not key:
                _check_header(value, index)
                continue
            entries[key.decode("utf-8")] = _entry(value)
            if len(entries) > _MAX_TENSORS:
                raise CheckpointError(f"{index} lists over {_MAX_TENSORS:,} tensors, which no ResNet has.")
    return entries


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
        key = key[:shared] + block[position : position + fresh]
        position += fresh
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int) -> tuple[int, int]:
    """Where a block is: offset and size."""
    offset, position = varint(data, position)
    size, _ = varint(data, position)
    return offset, size


def _skip_handle(data: bytes, position: int) -> int:
    _, position = varint(data, position)
    _, position = varint(data, position)
    return position


def _check_header(message: bytes, index: Path) -> None:
    """BundleHeaderProto: num_shards = 1, endianness = 2 (0 is little)."""
    for number, value in fields(message):
        if number == 2 and value != 0:
            raise CheckpointError(f"{index} was written on a big-endian machine. Save it again on another.")


def _entry(message: bytes) -> _Entry:
    """BundleEntryProto: dtype = 1, shape = 2, shard_id = 3, offset = 4, size = 5, slices = 7."""
    entry = _Entry()
    for number, value in fields(message):
        if number == 2 and isinstance(value, bytes):
            entry.shape = _shape(value)
        elif number == 7:
            entry.is_sliced = True
        elif isinstance(value, int) and number in (1, 3, 4, 5):
            setattr(entry, {1: "dtype", 3: "shard", 4: "offset", 5: "size"}[number], value)
    return entry


def _shape(message: bytes) -> list[int]:
    """TensorShapeProto: dim = 2, each with size = 1 (left out where it is 0)."""
    sizes = []
    for number, value in fields(message):
        if number == 2 and isinstance(value, bytes):
            sizes.append(next((size for inner, size in fields(value) if inner == 1 and isinstance(size, int)), 0))
    return sizes


def _read_tensors(index: Path, entries: dict[str, _Entry]) -> Weights:
    shards = data_files(index)
    if not shards:
        stem = index.name.removesuffix(".index")
        raise CheckpointError(f"{index} has no {stem}.data-00000-of-00001 beside it. Copy all files of the checkpoint.")
    stored = [np.memmap(shard, np.uint8, "r") if shard.stat().st_size else np.empty(0, np.uint8) for shard in shards]
    tensors: dict[str, NDArray[Any]] = {}
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES and entry.dtype != _BFLOAT16:
            continue  # strings: an object graph, a saver's own notes
        if entry.is_sliced:
            raise CheckpointError(f"{index}: {name} is saved in slices (a partitioned variable). Save it whole.")
        width = 2 if entry.dtype == _BFLOAT16 else _DTYPES[entry.dtype].itemsize
        count = int(np.prod(entry.shape, dtype=object)) if entry.shape else 1
        if entry.size != count * width or entry.shard >= len(stored):
            raise ValueError(f"{name} does not have the bytes that its shape needs")
        data = stored[entry.shard][entry.offset : entry.offset + entry.size]
        if data.size != entry.size:
            raise ValueError(f"{name} lies outside its data file")
        if entry.dtype in (3, 9):
            continue  # step counters
        tensors[name] = _to_float32(data, entry)
    return tensors


def _object_names(index: Path, entries: dict[str, _Entry]) -> dict[str, str]:
    """Keys → variables' names, from a TF2 checkpoint's graph of objects; empty for TF1's, whose keys are names."""
    entry = entries.get(OBJECT_GRAPH)
    if entry is None:
        return {}
    if entry.dtype != _STRING or entry.shape or entry.is_sliced or entry.size > _MAX_OBJECT_GRAPH_BYTES:
        raise ValueError("its graph of objects is no single string of a bearable size")
    with data_files(index)[entry.shard].open("rb") as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    # A string tensor: the length of each, a checksum of the lengths, the strings (tensorflow/core/util/tensor_bundle).
    length, position = varint(data, 0)
    position += 4
    if position + length != len(data):
        raise ValueError("its graph of objects does not have the bytes that it should")
    return read_object_graph(data[position:])


def _named(index: Path, tensors: Weights, names: dict[str, str]) -> Weights:
    """`tensors` under their variables' names. Keras 3 exports each variable twice, under one name: once is enough."""
    named: dict[str, NDArray[Any]] = {}
    for key, values in tensors.items():
        if names and _NO_WEIGHT.search(key):
            continue  # its name would be the variable's that it belongs to
        name = names.get(key, key)
        if name in named and not np.array_equal(named[name], values):
            raise CheckpointError(
                f"{index} holds two networks: two variables are called {name}. Save the one to serve."
            )
        named[name] = values
    return named


def _to_float32(data: NDArray[np.uint8], entry: _Entry) -> NDArray[Any]:
    if entry.dtype == _BFLOAT16:
        # The upper half of a float32.
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, _DTYPES[entry.dtype]).astype(np.float32)
    return values.reshape(entry.shape)
