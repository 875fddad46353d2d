"""The error for a checkpoint file whose examining process cannot run here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError
from ..processes.limited import NotStarted


@contextmanager
def examining(path: Path) -> Iterator[None]:
    """A context for `run_limited`: turns `NotStarted`, which is not the file's fault, into a `CheckpointError`."""
    try:
        yield
    except NotStarted as error:
        raise CheckpointError(
            f"{path} could not be examined, because the process that examines it could not run: {error}. Checkpoints "
            f"are read by {sys.executable or 'Python'} in processes of their own; see that it starts from this "
            f"service's environment (LD_LIBRARY_PATH, memory, open files), then start again."
        ) from None
