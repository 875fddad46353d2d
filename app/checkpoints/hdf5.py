"""HDF5 files, opened by h5py in a process of their own: the library can crash on a damaged file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_FILE_BYTES = 1 << 30
_MAX_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Hdf5:
    """What `hdf5_process` found in a file."""

    groups: dict[str, dict[str, str]]
    """Path (`layers/conv2d/vars`; of the file itself "") → the texts among its attributes that Keras's files need."""
    tensors: dict[str, NDArray[Any]]
    """Path → float32 values, in the file's order; an optimizer's are left out."""


def read_hdf5(path: Path, content: bytes | None = None) -> Hdf5:
    """The HDF5 file at `path`, or `content` from inside it.

    Raises `CheckpointError` in one line where h5py is missing, or the file is over the limit, damaged, or does what
    `hdf5_process` refuses.
    """
    if importlib.util.find_spec("h5py") is None:
        raise CheckpointError(
            f"{path} is a Keras file, which needs the package h5py. pip install 'resnet-serve[keras]'"
        )
    size_bytes = path.stat().st_size if content is None else len(content)
    if size_bytes > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {size_bytes:,} bytes. The limit for HDF5 is {MAX_FILE_BYTES:,}.")
    answer = _ask(path, content)
    line, _, numbers = answer.partition(b"\n")
    try:
        document = json.loads(line)
        if "refused" in document:
            raise CheckpointError(f"{path}: {document['refused']}.")
        if "damaged" in document:
            raise _damaged(path, document["damaged"])
        return Hdf5(document["groups"], _tensors(document["tensors"], numbers))
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "the HDF5 library crashed on it, or went over its time or memory") from None


def _ask(path: Path, content: bytes | None) -> bytes:
    command = [sys.executable, "-P", str(Path(__file__).with_name("hdf5_process.py"))]
    try:
        done = subprocess.run(
            [*command, "-" if content is not None else str(path.absolute())],
            input=content if content is not None else b"",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_MAX_SECONDS,
            check=False,
            # One thread: each would reserve memory of its own. No plugins: they are libraries loaded by name.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"},
        )
    except subprocess.TimeoutExpired:
        return b""
    return done.stdout if done.returncode == 0 else b""


def _tensors(entries: list[tuple[str, list[int]]], numbers: bytes) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    offset = 0
    for where, shape in entries:
        tensors[where] = np.frombuffer(numbers, "<f4", prod(shape), offset).reshape(shape)
        offset += 4 * prod(shape)
    return tensors


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged HDF5 file ({reason}). Copy or download it again.")
