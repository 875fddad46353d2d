"""safetensors: a JSON header and raw tensors (github.com/huggingface/safetensors, "Format").

Read here and not by the package, so that the header is checked before memory is allocated for the sizes in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..files import open_regular
from .base import Stored
from .converted import read_decisions
from .family_names import leaf_of_torch
from .json_file import TwiceError, parse_json
from .pickled_weights import MAX_TENSORS
from .tensor_axes import to_torch_axes

_LENGTH_BYTES = 8
# A ResNet-50's header has 35 kB; the names of 22,000 classes, which `convert` writes into it, take 1 MB.
_MAX_HEADER_BYTES = 4 << 20
_MAX_DIMENSIONS = 8
_METADATA = "__metadata__"
_BFLOAT16 = "BF16"
_FLOATS = {"F16": "<f2", _BFLOAT16: "<u2", "F32": "<f4", "F64": "<f8"}
_INTEGERS = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2"},
    **{"U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"},
}
_DTYPES = {name: np.dtype(code) for name, code in (_FLOATS | _INTEGERS).items()}
# transformers' TensorFlow classes wrote torch's module names with slashes, and TensorFlow's variable names.
_TENSORFLOW_RESNET = re.compile(r"(?:^|/)embedder/embedder/convolution/kernel(?::0)?$")


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def is_safetensors(head: bytes, tail: bytes) -> bool:
    """Whether it begins with an unsigned 64-bit header length and JSON (the format's README)."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def read_safetensors(path: Path) -> Stored:
    """The tensors, and the decisions that `convert` wrote. Sizes are checked before memory is allocated."""
    with open_regular(path) as file:
        entries, metadata, start = _header(file, path)
        tensors = {entry.name: _tensor(file, start, entry, path) for entry in entries}
    return Stored(_in_torchs_layout(tensors, metadata.get("format"), path), read_decisions(metadata, path))


def _header(file: BinaryIO, path: Path) -> tuple[list[_Entry], dict[str, str], int]:
    """The entries in the order of their bytes, the metadata, and the position of the first byte."""
    size = path.stat().st_size
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + length
    if start > size:
        raise _damaged(path, f"it ends early: its header has {length:,} bytes, and the file {size:,}")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} has a header of {length:,} bytes, and at most {_MAX_HEADER_BYTES:,} are read: no ResNet's is "
            f"larger. Save the weights alone, without other metadata."
        )
    try:
        header = parse_json(file.read(length))
    except TwiceError as error:
        raise _damaged(path, f"its header has {error} twice") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, f"{_METADATA} is no map of texts")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(
            f"{path} has {len(header):,} tensors, and at most {MAX_TENSORS:,} are read. Save the weights alone."
        )
    entries = sorted(_entries(header, path), key=lambda entry: (entry.begin, entry.end))
    at = 0
    for entry in entries:
        if entry.begin != at:
            kind = "share bytes with" if entry.begin < at else "have a gap before"
            raise _damaged(path, f"its tensors' bytes {kind} those of {entry.name[:80]}")
        at = entry.end
    if start + at > size:
        raise _damaged(path, f"it ends early: its tensors take {at:,} bytes, and the file has {size - start:,} of them")
    if start + at < size:
        raise _damaged(path, f"{size - start - at:,} bytes at its end are of no tensor")
    return entries, metadata, start


def _entries(header: dict[str, Any], path: Path) -> Iterator[_Entry]:
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sizes = [*shape, begin, end]
        except (KeyError, TypeError, ValueError):
            raise _damaged(path, f"the entry of {name[:80]} lacks its type, shape or place") from None
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name[:80]} is of a number format that does not fit ({str(dtype)[:20]}). Expected dense "
                f"float16, bfloat16, float32 or float64: save the weights before they are quantized."
            )
        if len(shape) > _MAX_DIMENSIONS or not all(type(each) is int and 0 <= each < 1 << 63 for each in sizes):
            raise _damaged(path, f"the entry of {name[:80]} has no shape or place of a tensor")
        if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise _damaged(path, f"{name[:80]} does not have the bytes that its shape needs")
        yield _Entry(name, dtype, tuple(shape), begin, end)


def _tensor(file: BinaryIO, start: int, entry: _Entry, path: Path) -> NDArray[Any]:
    """Read a tensor: floats as float32, integers unchanged."""
    file.seek(start + entry.begin)
    stored = np.fromfile(file, _DTYPES[entry.dtype], math.prod(entry.shape))
    if stored.size != math.prod(entry.shape):
        raise _damaged(path, f"it ends within {entry.name[:80]}")
    if entry.dtype == _BFLOAT16:
        # The upper half of a float32.
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    elif entry.dtype in _FLOATS:
        # Values that are too large become infinite, and are refused later.
        with np.errstate(over="ignore"):
            stored = stored.astype(np.float32, copy=False)
    return stored.reshape(entry.shape)


def _in_torchs_layout(tensors: dict[str, NDArray[Any]], framework: str | None, path: Path) -> dict[str, NDArray[Any]]:
    """`tensors` under torch's names and axes. Raises `CheckpointError` for frameworks with another layout."""
    if framework in ("flax", "jax", "mlx"):
        raise CheckpointError(
            f"{path} was written by {framework}, as its metadata says, which keeps kernels in another order. Save the "
            f"model from PyTorch, or export it to ONNX."
        )
    if framework != "tf" or not any(_TENSORFLOW_RESNET.search(name) for name in tensors):
        return tensors
    return {
        leaf_of_torch(name.removesuffix(":0")).replace("/", "."): to_torch_axes(values)
        for name, values in tensors.items()
    }


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged safetensors file: {reason}. Copy or download it again.")
