"""The tensors of a pickle: described by a limited process that imports nothing, their values read from the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..processes.framing import read_document
from ..processes.limited import Ended, Limits, OutOfTime, run_limited
from .examination import examining
from .inert_unpickler import MAX_ANSWER_BYTES

MAX_PICKLE_BYTES = 16 << 20
MAX_TENSORS = 2_000
MAX_RANK = 8
# No file, child or socket beyond the three standard streams.
LIMITS = Limits(memory_bytes=192 << 20, cpu_seconds=5, seconds=30.0, open_files=3)
# The number formats that are read, as numpy's; bfloat16, which numpy lacks, is read as integers.
_DTYPES = {
    **{"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2"},
    **{"int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?"},
}
ReadStorage = Callable[[str], bytearray]
"""A storage's key → its bytes."""
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a tensor's values: a view of a storage."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pickled:
    """The content of a pickle, as `inert_unpickler` describes it."""

    document: Any
    storages: tuple[tuple[str, str], ...] = ()
    """The keys and number formats of a legacy file's storages, in order."""
    offset: int = 0
    """The position of the first storage in a legacy file."""


def unpickle(container: Literal["zip", "legacy"], content: bytes, path: Path) -> Pickled:
    """The content of a pickle. Nothing that it names is run or imported.

    Raises `CheckpointError` for a pickle that names other things than weights, is too large, or is damaged.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise too_much(path, f"its pickle has {len(content):,} bytes")
    try:
        with examining(path):
            answer = run_limited(
                "app.checkpoints.inert_unpickler",
                [container],
                lambda pipe: read_document(pipe, MAX_ANSWER_BYTES),
                LIMITS,
                data=content,
                standard_library_only=True,
            )
    except OutOfTime:
        raise too_much(path, f"reading its pickle takes over {LIMITS.seconds:.0f} seconds") from None
    except Ended:
        raise too_much(path, "its pickle takes more time, memory or depth than any checkpoint's") from None
    if "limit" in answer:
        raise too_much(path, answer["limit"])
    if "refused" in answer:
        raise CheckpointError(
            f"{path} holds more than tensors ({printable(answer['refused'])}), and nothing in a checkpoint is ever "
            f"run here. Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."
        )
    if "failed" in answer:
        raise CheckpointError(
            f"{path} looks like a PyTorch file but cannot be read ({printable(answer['failed'])}). "
            f"Copy or download it again."
        )
    return Pickled(
        document=answer["document"],
        storages=tuple((key, dtype) for key, dtype in answer.get("storages", ())),
        offset=answer.get("offset", 0),
    )


def place_of(tensor: list[Any]) -> Place:
    """The place of a tensor, from its list in a document."""
    storage, dtype, offset, shape, stride = tensor
    return Place(storage, dtype, offset, tuple(shape), tuple(stride))


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:160].rstrip(". ")


def too_much(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is no checkpoint to read: {what}. Save the weights alone: "
        f"torch.save(model.state_dict(), 'weights.pth')."
    )


def check_claims(places: Mapping[str, Place], path: Path) -> None:
    """Raises `CheckpointError` for unsupported formats, and for tensors that claim far more than the file has."""
    if len(places) > MAX_TENSORS:
        raise too_much(path, f"it has {len(places):,} tensors, and at most {MAX_TENSORS:,} are read")
    claimed = 0
    size = path.stat().st_size
    for name, place in places.items():
        if place.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is sparse, quantized, without data or of a number format that does not fit "
                f"({_format_of(place.dtype)}). Expected dense float16, bfloat16, float32 or float64."
            )
        itemsize = np.dtype(_DTYPES[place.dtype]).itemsize
        count = prod(place.shape)
        if max(count, *place.shape, 0) * itemsize > size:
            raise CheckpointError(f"{path}: {name} claims shape {place.shape} but stores fewer values.")
        claimed += count * itemsize
    # Twice, since tied weights are stored once and used twice.
    if claimed > 2 * size:
        raise CheckpointError(f"{path}: its tensors claim {claimed:,} bytes, twice what the file stores or more.")


def _format_of(dtype: str) -> str:
    """A number format, for an error text."""
    return f"torch.{dtype}" if re.fullmatch(r"(?:float|bfloat|complex|q?u?int|bits)\w*", dtype) else printable(dtype)


def load_arrays(
    places: Mapping[str, Place], read_storage: ReadStorage, path: Path, big_endian: bool = False
) -> dict[str, NDArray[Any]]:
    """The tensors, floats as float32 and integers unchanged. float32 tensors are views of their storage.

    Each storage is read once, one at a time, and a storage in another format is freed before the next is read.
    Raises `CheckpointError` as `check_claims` does, and for a tensor larger than its storage.
    """
    check_claims(places, path)
    by_storage: dict[str, list[str]] = {}
    for name, place in places.items():
        by_storage.setdefault(place.storage, []).append(name)
    arrays: dict[str, NDArray[Any]] = {}
    for storage, names in by_storage.items():
        values = read_storage(storage) if any(prod(places[name].shape) for name in names) else bytearray()
        for name in names:
            arrays[name] = _array(name, places[name], values, path, big_endian)
    return {name: arrays[name] for name in places}


def _array(name: str, place: Place, storage: bytearray, path: Path, big_endian: bool) -> NDArray[Any]:
    dtype = np.dtype(_DTYPES[place.dtype]).newbyteorder(">" if big_endian else "<")
    count = prod(place.shape)
    if count:
        stored = len(storage) // dtype.itemsize
        last = place.offset + sum((n - 1) * step for n, step in zip(place.shape, place.stride, strict=True))
        # Checked before a view is created: with a stride of 0, a few bytes can claim to be terabytes.
        if count > stored or last >= stored:
            raise CheckpointError(f"{path}: {name} claims shape {place.shape} but stores fewer values.")
        flat = np.frombuffer(storage, dtype, count=stored)
        steps = [step * dtype.itemsize for step in place.stride]
        view = np.lib.stride_tricks.as_strided(flat[place.offset :], place.shape, steps)
    else:
        view = np.zeros(place.shape, dtype)
    if place.dtype == "bfloat16":
        # The upper half of a float32.
        widened = np.left_shift(view.astype(np.uint32), np.uint32(16))
        return np.asarray(widened).view(np.float32).reshape(place.shape)
    if place.dtype in _FLOATS:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(view, np.float32).reshape(place.shape)
    return np.ascontiguousarray(view, dtype.newbyteorder("=")).reshape(place.shape)
