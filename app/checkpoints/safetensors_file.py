"""safetensors: a JSON header and raw tensors."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from .base import Stored
from .converted import read_decisions
from .torch_file import to_float32


def is_safetensors(head: bytes, tail: bytes) -> bool:
    """An unsigned 64-bit header length, then JSON (the format's own README)."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def read_safetensors(path: Path) -> Stored:
    from safetensors import SafetensorError, safe_open

    try:
        # Through torch: numpy has no bfloat16.
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: to_float32(name, file.get_tensor(name), path) for name in file.keys()}  # noqa: SIM118
            return Stored(tensors, read_decisions(file.metadata(), path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is a damaged safetensors file: {error}. Copy or download it again.") from None
