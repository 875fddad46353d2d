"""Atomic writes of files, reads within bounds, and scratch folders that no killed process leaves behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

_SCRATCH = ".resnet-serve-scratch-"


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


def own_temporary_folder(name: str) -> Path:
    """A folder among the temporary ones that this user alone can write to: the same one every time, if it can be had.

    Somebody else may have made one of that name, to have their files taken for ours: then it is a new one.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    with contextlib.suppress(OSError):
        return Path(tempfile.mkdtemp(prefix=f"{name}-"))
    return folder  # not writable: the caller that writes reports it


@contextlib.contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, removed at the end of the block. Raises `OSError`.

    While the block lasts it is locked, and a lock ends with its process however that ends: the next call removes the
    folders that are not locked.
    """
    with contextlib.ExitStack() as stack:
        # A folder that is there and not locked yet would be taken for one whose process was killed.
        with _opened(folder) as descriptor:
            _lock(descriptor, wait=True)
            _remove_unlocked(folder)
            made = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
            _lock(stack.enter_context(_opened(made)), wait=False)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    for path in folder.glob(f"{_SCRATCH}*"):
        # Another user's folders cannot be opened: they stay.
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            if _lock(descriptor, wait=False):
                logger.info("Removing %s, left by a process that was killed.", path)
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether it is locked now: not where another process has locked it, nor on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegularError(OSError):
    """A path that is, or leads to, a pipe, a socket or a device: reading it may never end."""


class TooLargeError(OSError):
    """A file of more bytes than the reader takes."""


def check_regular(path: Path) -> os.stat_result:
    """What `path`, or the file that it links to, is. Raises `OSError`: `NotRegularError`, `IsADirectoryError`, …"""
    found = path.stat()
    _check_mode(found, path)
    return found


def open_regular(path: Path) -> BufferedReader:
    """`path` opened to read, where it is a regular file. Raises `OSError` as `check_regular` does, and never waits."""
    # Before it is opened, since a device may act on that; and again behind it, since the path may lead elsewhere now.
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _check_mode(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """All of a regular file. Raises `OSError` as `open_regular` does, and `TooLargeError` over `limit_bytes`."""
    with open_regular(path) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise TooLargeError(errno.EFBIG, f"it has over {limit_bytes:,} bytes", str(path))
    return data


def _check_mode(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no file")
        raise NotRegularError(errno.EINVAL, f"it is {kind} and no regular file", str(path))
