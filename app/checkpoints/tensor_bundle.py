"""TensorFlow 1 and 2 checkpoints, read without TensorFlow: an index of protobuf records and files of raw numbers.

The index is an SSTable (see `sstable`). Each value is a `BundleEntryProto`, and the first, under the
empty key, a `BundleHeaderProto` (tensorflow/core/protobuf/tensor_bundle.proto).
"""

from __future__ import annotations

import re
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..protobuf import fields, varint
from .base import Stored, Weights
from .object_graph import OBJECT_GRAPH, read_object_graph
from .saved_model import find_home, with_graph
from .sstable import FOOTER_BYTES, MAGIC, read_table
from .tensor_axes import in_torch_memory

# A ResNet-50's index has some 10 kB, with an optimizer's variables 30; its keys are shorter than 200 bytes.
_MAX_INDEX_BYTES = 4 * 1024 * 1024
_MAX_TENSORS = 10_000
_MAX_DIMENSIONS = 8
_MAX_SHARDS = 1_000

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
# Keys of training state in a graph of objects: optimizers, their slots, metrics.
_NO_WEIGHT = re.compile(r"(?:^|/)(?:_?optimizer|keras_api)/|/\.OPTIMIZER_SLOT/")
_MAX_OBJECT_GRAPH_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class _Entry:
    """The type, shape and position of a tensor's values."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    is_sliced: bool = False


def is_tensor_bundle(head: bytes, tail: bytes) -> bool:
    """Whether the file ends as an SSTable does."""
    return len(tail) >= FOOTER_BYTES and tail.endswith(MAGIC)


def data_files(index: Path) -> list[Path]:
    """The existing data files of `index`, in the order of their shards."""
    name = re.compile(re.escape(index.name.removesuffix(".index")) + r"\.data-\d{5}-of-\d{5}")
    return sorted(path for path in index.parent.iterdir() if name.fullmatch(path.name))


def _shards(index: Path, count: int) -> list[Path]:
    """All data files of `index`, by the count in it. Raises `CheckpointError` if one is missing."""
    stem = index.name.removesuffix(".index")
    if not 1 <= count <= _MAX_SHARDS:
        raise ValueError(f"it has {count} data files")
    shards = [index.with_name(f"{stem}.data-{number:05d}-of-{count:05d}") for number in range(count)]
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{index} has no {shard.name} beside it. Copy all files of the checkpoint.")
    return shards


def read_tensor_bundle(index: Path) -> Stored:
    """The float tensors of a checkpoint, under their saved names.

    `index` is its `.index` file; the `.data-…` files are beside it. Strings and integers (object graphs, step counters)
    are left out. TF2 saves a variable by its position in a graph of objects, which also has the name to use.

    Raises `CheckpointError` if a file is missing, damaged, compressed or partitioned.
    """
    try:
        count, entries = _read_index(index)
        shards = _shards(index, count)
        _check_claims(shards, entries)
        tensors = _named(index, _read_tensors(index, shards, entries), _object_names(shards, entries))
        home = find_home(index)
        return with_graph(tensors, home) if home is not None else Stored(tensors)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(
            f"{index} is a damaged TensorFlow checkpoint ({error}). Copy it again, all files of it."
        ) from None


def _read_index(index: Path) -> tuple[int, dict[str, _Entry]]:
    """The number of data files, and the entries in them."""
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} is over {_MAX_INDEX_BYTES:,} bytes, which no ResNet's index is.")
    entries: dict[str, _Entry] = {}
    count = 1
    for key, value in read_table(index.read_bytes(), index):
        if not key:
            count = _check_header(value, index)
            continue
        entries[key.decode("utf-8")] = _entry(value)
        if len(entries) > _MAX_TENSORS:
            raise CheckpointError(f"{index} lists over {_MAX_TENSORS:,} tensors, which no ResNet has.")
    return count, entries


def _check_header(message: bytes, index: Path) -> int:
    """The number of data files, from the BundleHeaderProto: num_shards = 1, endianness = 2 (0 is little)."""
    count = 0
    for number, value in fields(message):
        if number == 2 and value != 0:
            raise CheckpointError(f"{index} was written on a big-endian machine. Save it again on another.")
        if number == 1 and isinstance(value, int):
            count = value
    return count


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
            if len(sizes) > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor has over {_MAX_DIMENSIONS} dimensions")
    return sizes


def _check_claims(shards: list[Path], entries: dict[str, _Entry]) -> None:
    """Raises `ValueError` unless all entries are within their files, without overlaps."""
    sizes = [shard.stat().st_size for shard in shards]
    ends = [0] * len(shards)
    for name, entry in sorted(entries.items(), key=lambda each: (each[1].shard, each[1].offset, each[1].size)):
        if entry.shard >= len(shards) or entry.offset + entry.size > sizes[entry.shard]:
            raise ValueError(f"{name} lies outside its data file")
        if entry.offset < ends[entry.shard]:
            raise ValueError(f"{name} lies where another tensor does")
        ends[entry.shard] = entry.offset + entry.size


def _read_tensors(index: Path, shards: list[Path], entries: dict[str, _Entry]) -> Weights:
    tensors: dict[str, NDArray[Any]] = {}
    wanted: list[tuple[str, _Entry]] = []
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES and entry.dtype != _BFLOAT16:
            continue  # strings: an object graph, a saver's own notes
        if entry.is_sliced:
            raise CheckpointError(f"{index}: {name} is saved in slices (a partitioned variable). Save it whole.")
        width = 2 if entry.dtype == _BFLOAT16 else _DTYPES[entry.dtype].itemsize
        if entry.size != prod(entry.shape) * width:
            raise ValueError(f"{name} does not have the bytes that its shape needs")
        if entry.dtype not in (3, 9):  # step counters
            wanted.append((name, entry))
    with ExitStack() as stack:
        files = [stack.enter_context(shard.open("rb")) for shard in shards]
        for name, entry in wanted:
            data = _read(files[entry.shard], entry)
            tensors[name] = _to_float32(data, entry)
    return tensors


def _read(file: BinaryIO, entry: _Entry) -> bytes:
    file.seek(entry.offset)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise ValueError("a data file ends early")
    return data


def _object_names(shards: list[Path], entries: dict[str, _Entry]) -> dict[str, str]:
    """Keys → variables' names, from a TF2 checkpoint's graph of objects; empty for TF1, where keys are names."""
    entry = entries.get(OBJECT_GRAPH)
    if entry is None:
        return {}
    if entry.dtype != _STRING or entry.shape or entry.is_sliced or entry.size > _MAX_OBJECT_GRAPH_BYTES:
        raise ValueError("its graph of objects is no single string of a bearable size")
    with shards[entry.shard].open("rb") as file:
        data = _read(file, entry)
    # A string tensor: the lengths, a checksum of the lengths, the strings (tensorflow/core/util/tensor_bundle).
    length, position = varint(data, 0)
    position += 4
    if position + length != len(data):
        raise ValueError("its graph of objects does not have the bytes that it should")
    return read_object_graph(data[position:])


def _named(index: Path, tensors: Weights, names: dict[str, str]) -> Weights:
    """`tensors` under their variables' names. Keras 3 exports each variable twice under one name; one is kept."""
    named: dict[str, NDArray[Any]] = {}
    for key, values in tensors.items():
        if names and _NO_WEIGHT.search(key):
            continue  # its name would be that of the variable that it belongs to
        name = names.get(key, key)
        if name in named and not np.array_equal(named[name], values):
            raise CheckpointError(
                f"{index} holds two networks: two variables are called {name}. Save the one to serve."
            )
        named[name] = values
    return named


def _to_float32(data: bytes, entry: _Entry) -> NDArray[Any]:
    if entry.dtype != _BFLOAT16:
        return in_torch_memory(np.frombuffer(data, _DTYPES[entry.dtype]).reshape(entry.shape))
    # The upper half of a float32.
    values = in_torch_memory(np.frombuffer(data, "<u2").reshape(entry.shape), "<u4")
    values <<= 16
    return values.view(np.float32)
