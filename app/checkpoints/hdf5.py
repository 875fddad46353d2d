"""HDF5 files, opened by h5py in a process of their own: the library can crash on a damaged file."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..processes.framing import read_document, read_exactly
from ..processes.limited import Ended, Limits, NotStarted, run_limited
from .examination import examining
from .tensor_axes import in_torch_memory

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_FILE_BYTES = 1 << 30
_MAX_HEADER_BYTES = 16 << 20
# Python, numpy and the library take some hundred megabytes of address space; a member of a zip is held whole.
_MEMORY_BYTES = 1 << 30
_MAX_CPU_SECONDS = 20
_MAX_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Hdf5:
    """The groups and tensors of a file, as `hdf5_process` reads them."""

    groups: dict[str, dict[str, str]]
    """Path (`layers/conv2d/vars`; "" for the file itself) → those of its text attributes that Keras's files need."""
    tensors: dict[str, NDArray[Any]]
    """Path → float32 values, in the file's order, without an optimizer's."""


def read_hdf5(path: Path, member: str | None = None, size_bytes: int | None = None) -> Hdf5:
    """The HDF5 file at `path`, or the file `member`, of `size_bytes`, in the zip at `path`.

    Raises `CheckpointError` in one line if h5py is missing, or if the file is over the limit, damaged, or refused by
    `hdf5_process`.
    """
    if importlib.util.find_spec("h5py") is None:
        raise CheckpointError(
            f"{path} is a Keras file, which needs the package h5py. pip install 'resnet-serve[keras]'"
        )
    size_bytes = path.stat().st_size if size_bytes is None else size_bytes
    if member is None and size_bytes > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size_bytes:,} bytes. The limit for HDF5 is {MAX_FILE_BYTES:,}.")
    try:
        with examining(path):
            return run_limited(
                "app.checkpoints.hdf5_process",
                [str(path.absolute()), *([member] if member else [])],
                _take,
                Limits(_MEMORY_BYTES + 2 * size_bytes, _MAX_CPU_SECONDS, _MAX_SECONDS),
                # No plugins, which are libraries loaded by name.
                environment={"HDF5_PLUGIN_PRELOAD": "::"},
            )
    except _Answered as answer:
        if answer.is_refusal:
            raise CheckpointError(f"{path}: {answer}.") from None
        raise _damaged(path, str(answer)) from None
    except Ended:
        raise _damaged(path, "the HDF5 library crashed on it, or went over its time or memory") from None


class _Answered(Exception):
    """The process's refusal of a file, or its report of damage."""

    def __init__(self, text: str, is_refusal: bool) -> None:
        super().__init__(text)
        self.is_refusal = is_refusal


def _take(pipe: IO[bytes]) -> Hdf5:
    """Read the header, the values of each tensor, and the closing document.

    Tensors are held once, in the memory layout in which they are served.
    """
    header = read_document(pipe, _MAX_HEADER_BYTES)
    if "not_run" in header:
        raise NotStarted(str(header["not_run"]))
    if "tensors" not in header:
        raise _Answered(str(header.get("refused") or header["damaged"]), "refused" in header)
    tensors: dict[str, NDArray[Any]] = {}
    for where, shape in header["tensors"]:
        data = read_exactly(pipe, 4 * prod(shape))
        tensors[where] = in_torch_memory(np.frombuffer(data, "<f4").reshape(shape))
    end = read_document(pipe, _MAX_HEADER_BYTES)
    if "damaged" in end:
        raise _Answered(str(end["damaged"]), is_refusal=False)
    return Hdf5(header["groups"], tensors)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged HDF5 file ({reason}). Copy or download it again.")
