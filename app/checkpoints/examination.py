"""Checkpoint files read by a limited child process, and the error for a child that cannot run here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from ..errors import CheckpointError
from ..processes.limited import Limits, NotStarted, run_limited

T = TypeVar("T")


def examine(
    path: Path,
    module: str,
    arguments: Sequence[str],
    take: Callable[[IO[bytes]], T],
    limits: Limits,
    *,
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
    standard_library_only: bool = False,
) -> T:
    """`run_limited` with a module of this folder, for the file at `path`.

    Raises `Ended`, `OutOfTime`, what `take` raises, and `CheckpointError` where the child cannot run, which says
    nothing of the file.
    """
    try:
        return run_limited(
            f"{__package__}.{module}",
            arguments,
            take,
            limits,
            data=data,
            environment=environment,
            standard_library_only=standard_library_only,
        )
    except NotStarted as error:
        raise not_examined(path, str(error)) from None


def not_examined(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be examined, because the process that examines it could not run: {reason}. Checkpoints are "
        f"read by {sys.executable or 'Python'} in processes of their own; see that it starts from this service's "
        f"environment (LD_LIBRARY_PATH, memory, open files), then start again."
    )
