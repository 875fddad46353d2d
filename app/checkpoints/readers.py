"""Readers as rows of a table: a new format is one file and one row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .base import Contents, Stored
from .families import find_family, to_torchvision
from .safetensors_file import is_safetensors, read_safetensors
from .state_dict import check_values, clean
from .tensor_bundle import data_files, is_tensor_bundle, read_tensor_bundle
from .torch_file import is_torch_legacy, is_torch_zip, read_torch

_EDGE_BYTES = 64


def _itself(path: Path) -> list[Path]:
    return [path]


@dataclass(frozen=True, slots=True)
class Reader:
    """A container that is recognised by its first or last bytes, never by its name."""

    name: str
    recognises: Callable[[bytes, bytes], bool]
    read: Callable[[Path], Stored]
    files: Callable[[Path], Iterable[Path]] = _itself
    """All files that the checkpoint consists of; their digest is its version."""


READERS = (
    Reader("torch zip", is_torch_zip, read_torch),
    Reader("torch legacy", is_torch_legacy, read_torch),
    Reader("safetensors", is_safetensors, read_safetensors),
    Reader("TensorFlow checkpoint", is_tensor_bundle, read_tensor_bundle, lambda index: [index, *data_files(index)]),
)


def read_checkpoint(path: Path) -> Contents:
    """What is in the checkpoint at `path`; of a TensorFlow checkpoint, the path is its `.index` file.

    Runs nothing that is in the file. Raises `CheckpointError` with what was expected and what was found.
    """
    head, tail = _edges(path)
    for reader in READERS:
        if reader.recognises(head, tail):
            stored = reader.read(path)
            weights = clean(stored.tensors, path)
            family = find_family(weights)
            if family is not None:
                weights = to_torchvision(weights, family, path)
            check_values(weights, path)
            return Contents(
                weights=weights,
                sha256=_digest(reader.files(path)),
                container=reader.name,
                family=family.name if family else "torchvision",
                told=stored.told.then(family.told) if family else stored.told,
                warnings=stored.warnings,
            )
    raise CheckpointError(
        f"{path} is no checkpoint that can be read here. Expected a PyTorch file (.pth, .pt), safetensors or a "
        f"TensorFlow checkpoint (.index); it begins with {head[:8].hex(' ') or 'nothing, it is empty'}."
    )


def _edges(path: Path) -> tuple[bytes, bytes]:
    """The first and the last bytes of the file."""
    try:
        with path.open("rb") as file:
            head = file.read(_EDGE_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - _EDGE_BYTES))
            return head, file.read()
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder. Expected a file: a .pth, .pt, .safetensors or .index.") from None
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}: {error.strerror}. Make it readable for the user that runs the service."
        ) from None


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 of the files, one behind the other: of a single file, the file's own."""
    sha256 = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
    return sha256.hexdigest()
