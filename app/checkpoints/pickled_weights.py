"""What a pickle holds, asked of a process that is limited and imports nothing; the values come from the file itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError
from . import inert_unpickler

if TYPE_CHECKING:
    import torch

MAX_PICKLE_BYTES = 16 << 20
MAX_TENSORS = 2_000
_MAX_WALL_SECONDS = 30
# The number formats that are read; of any other, torch says what it is.
_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's values lie: a view of a storage."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pickled:
    """The weights in a pickle: names → places."""

    tensors: Mapping[str, Place]
    modules: Mapping[str, Mapping[str, Any]]
    """Of a whole pickled module: its parts by name, with their classes and what tells a variant."""
    found: str
    """What the pickle is, for a person."""
    storages: tuple[tuple[str, str], ...] = ()
    """Of a legacy file: keys and number formats in their order, …"""
    offset: int = 0
    """… and where the first one's values begin."""


def unpickle(container: Literal["zip", "legacy"], content: bytes, path: Path) -> Pickled:
    """Where the tensors of a pickle lie. Runs and imports nothing that it names.

    Raises `CheckpointError` for a pickle that names what has no place there, takes too much, or is damaged.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise _too_much(path, f"its pickle has {len(content):,} bytes")
    command = [sys.executable, "-I", "-S", "-B", inert_unpickler.__file__, container]
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, timeout=_MAX_WALL_SECONDS, env={}, cwd="/", check=False
        )
    except subprocess.TimeoutExpired:
        raise _too_much(path, f"reading its pickle takes over {_MAX_WALL_SECONDS} seconds") from None
    try:
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _too_much(path, "its pickle takes more time, memory or depth than any checkpoint's")
    if "refused" in answer:
        raise CheckpointError(
            f"{path} holds more than tensors ({_printable(answer['refused'])}), and nothing in a checkpoint is ever "
            f"run here. Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."
        )
    if "failed" in answer:
        raise CheckpointError(
            f"{path} looks like a PyTorch file but cannot be read ({_printable(answer['failed'])}). "
            f"Copy or download it again."
        )
    if len(answer["tensors"]) > MAX_TENSORS:
        raise _too_much(path, f"it has {len(answer['tensors']):,} tensors, and at most {MAX_TENSORS:,} are read")
    return Pickled(
        tensors={name: _place(*place) for name, place in answer["tensors"].items()},
        modules=answer["modules"],
        found=_printable(answer["found"]),
        storages=tuple((key, dtype) for key, dtype in answer.get("storages", ())),
        offset=answer.get("offset", 0),
    )


def _place(storage: str, dtype: str, offset: int, shape: list[int], stride: list[int]) -> Place:
    return Place(storage, dtype, offset, tuple(shape), tuple(stride))


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:160].rstrip(". ")


def _too_much(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is no checkpoint to read: {what}. Save the weights alone: "
        f"torch.save(model.state_dict(), 'weights.pth')."
    )


def load_tensors(
    places: Mapping[str, Place], read_storage: Callable[[str], bytearray], path: Path
) -> dict[str, torch.Tensor]:
    """The tensors, as views of their storages: nothing is copied, and none is larger than what the file has of it."""
    read = cache(read_storage)
    return {name: _tensor(name, place, read, path) for name, place in places.items()}


def _tensor(name: str, place: Place, read_storage: Callable[[str], bytearray], path: Path) -> torch.Tensor:
    import torch

    if place.dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name} is of a number format that does not fit ({_printable(place.dtype)}). "
            f"Expected dense float16, bfloat16, float32 or float64."
        )
    dtype: torch.dtype = getattr(torch, place.dtype)
    count = prod(place.shape)
    if not count:
        return torch.empty(0, dtype=dtype).reshape(place.shape)
    storage = read_storage(place.storage)
    stored = len(storage) // dtype.itemsize
    last = place.offset + sum((n - 1) * step for n, step in zip(place.shape, place.stride, strict=True))
    # Before any view is made: a few bytes can claim to be terabytes, with a stride of 0.
    if count > stored or last >= stored:
        raise CheckpointError(f"{path}: {name} claims shape {place.shape} but stores fewer values.")
    return torch.frombuffer(storage, dtype=dtype, count=stored).as_strided(place.shape, place.stride, place.offset)


def check_claims(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse a file whose tensors, many views of one storage, would be copied to far more than it has."""
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    # Tied weights are stored once and used twice.
    if claimed > 2 * path.stat().st_size:
        raise CheckpointError(f"{path}: its tensors claim {claimed:,} bytes, twice what the file stores or more.")
