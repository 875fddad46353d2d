"""Folders of exports that are being written, and what writers that were killed have left of theirs."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_PREFIX = ".unfinished-"


@contextlib.contextmanager
def unfinished_in(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, removed at the end of the block unless it was renamed. Raises `OSError`.

    While the block lasts it is locked, and a lock ends with its process however that ends: whoever makes the next one
    removes those that are not locked.
    """
    with contextlib.ExitStack() as stack:
        # A folder that is there and not locked yet would be taken for a leaving.
        with _opened(folder) as descriptor:
            _lock(descriptor, wait=True)
            _remove_leavings(folder)
            made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
            _lock(stack.enter_context(_opened(made)), wait=False)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def is_unfinished(path: Path) -> bool:
    return path.name.startswith(_PREFIX)


def _remove_leavings(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        # Another's, or another service's user's: whatever cannot be looked at stays.
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            if _lock(descriptor, wait=False):
                logger.info("Removing %s, which a process that was killed has left.", path)
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether it is locked now: not where another has it, nor on a file system without locks, where all is left."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
