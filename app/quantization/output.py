"""The files that `quantize` writes: the model, and the picture of its report."""

from __future__ import annotations

from pathlib import Path

from ..errors import QuantizationError
from ..files import write_whole


def write(data: bytes, target: Path, *, replace: bool) -> None:
    """Write a file completely or not at all. Raises `QuantizationError` if it cannot, or if the file must stay."""
    if target.exists() and not replace:
        raise QuantizationError(f"{target} exists. Remove it, name another with --output, or replace it with --force.")
    try:
        write_whole(target, data)
    except OSError as error:
        raise QuantizationError(f"Cannot write {target}: {error.strerror or error}.") from None
