"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes `target`, in one step, when the block ends. Whatever goes wrong leaves nothing.

    What was there stays until then. Raises `OSError`.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would shut out whoever shares the folder.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_whole(target: Path, data: bytes) -> None:
    """`data` as the file `target`. Raises `OSError`."""
    with written_whole(target) as file:
        file.write(data)
