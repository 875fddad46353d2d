"""HDF5 files, opened by h5py in a process of their own: the library can crash on a damaged file."""

from __future__ import annotations

import importlib.util
import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .limited_process import run_limited

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_FILE_BYTES = 1 << 30
_MAX_MEMORY_BYTES = 6 << 30
_MAX_CPU_SECONDS = 60
_MAX_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Hdf5:
    """What `hdf5_process` found in a file."""

    groups: dict[str, dict[str, str]]
    """Path (`layers/conv2d/vars`; of the file itself "") → the texts among its attributes that Keras's files need."""
    tensors: dict[str, NDArray[Any]]
    """Path → float32 values, in the file's order; an optimizer's are left out."""


def read_hdf5(path: Path, member: str | None = None) -> Hdf5:
    """The HDF5 file at `path`, or the one that is `member` of the zip at `path`.

    Raises `CheckpointError` in one line where h5py is missing, or the file is over the limit, damaged, or does what
    `hdf5_process` refuses.
    """
    if importlib.util.find_spec("h5py") is None:
        raise CheckpointError(
            f"{path} is a Keras file, which needs the package h5py. pip install 'resnet-serve[keras]'"
        )
    if member is None and (size_bytes := path.stat().st_size) > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size_bytes:,} bytes. The limit for HDF5 is {MAX_FILE_BYTES:,}.")
    answer = run_limited(
        "hdf5_process.py",
        [str(path.absolute()), *([member] if member else [])],
        memory_bytes=_MAX_MEMORY_BYTES,
        cpu_seconds=_MAX_CPU_SECONDS,
        seconds=_MAX_SECONDS,
        # No plugins: they are libraries loaded by name.
        environment={"HDF5_PLUGIN_PRELOAD": "::"},
    )
    numbers, document = _parts(answer)
    try:
        if "refused" in document:
            raise CheckpointError(f"{path}: {document['refused']}.")
        if "damaged" in document:
            raise _damaged(path, document["damaged"])
        return Hdf5(document["groups"], _tensors(document["tensors"], numbers))
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "the HDF5 library crashed on it, or went over its time or memory") from None


def _parts(answer: bytes) -> tuple[memoryview, dict[str, Any]]:
    """The numbers, and the document behind them, whose length stands last; an empty one if there is none."""
    try:
        (length,) = struct.unpack("<Q", answer[-8:])
        document = json.loads(answer[-8 - length : -8])
    except (ValueError, struct.error):
        document = None
    return memoryview(answer), document if isinstance(document, dict) else {}


def _tensors(entries: list[tuple[str, list[int]]], numbers: memoryview) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    offset = 0
    for where, shape in entries:
        tensors[where] = np.frombuffer(numbers, "<f4", prod(shape), offset).reshape(shape)
        offset += 4 * prod(shape)
    return tensors


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged HDF5 file ({reason}). Copy or download it again.")
