"""Readers as rows of a table: a new format is one file and one row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .base import Weights
from .safetensors_file import is_safetensors, read_safetensors
from .state_dict import clean
from .torch_file import is_torch_legacy, is_torch_zip, read_torch

_HEAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class Reader:
    """A container that is recognised by its first bytes, never by its name."""

    name: str
    recognises: Callable[[bytes], bool]
    read: Callable[[Path], Weights]


READERS = (
    Reader("torch zip", is_torch_zip, read_torch),
    Reader("torch legacy", is_torch_legacy, read_torch),
    Reader("safetensors", is_safetensors, read_safetensors),
)


def read_weights(path: Path) -> tuple[Weights, str]:
    """The weights in `path`, under torchvision's names, and the file's SHA-256 in hex.

    Runs nothing that is in the file. Raises `CheckpointError` with what was expected and what was found.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder. Expected a file: a .pth, .pt or .safetensors checkpoint.") from None
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}: {error.strerror}. Make it readable for the user that runs the service."
        ) from None
    for reader in READERS:
        if reader.recognises(head):
            return clean(reader.read(path), path), sha256
    raise CheckpointError(
        f"{path} is no checkpoint that can be read here. Expected a PyTorch file (.pth, .pt) or safetensors; it begins "
        f"with {head[:8].hex(' ') or 'nothing, it is empty'}."
    )
