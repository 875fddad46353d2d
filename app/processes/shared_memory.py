"""Memory shared between processes: anonymous, passed by its descriptor.

A memfd has no name that could be left behind, uses no /dev/shm (64 MB in a container), and is freed with the last
process that holds it. Untouched pages take no memory.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile

# If one process shortened the memory, reading it would kill the others with SIGBUS.
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def create_shared_memory(name: str, size_bytes: int) -> int:
    """The descriptor of new memory, filled with zeros; the caller closes it. Raises `OSError`.

    On systems without memfd (other than Linux) it is an unlinked temporary file without seals.
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(size_bytes)
            return os.dup(file.fileno())
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, seal) for seal in _SEALS))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def put_in_memory(name: str, data: bytes) -> int:
    """The descriptor of new memory with `data`, positioned at its start; the caller closes it. Raises `OSError`."""
    descriptor = create_shared_memory(name, len(data))
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, memoryview(data)[written:], written)
    return descriptor


def take_from_memory(descriptor: int) -> bytes:
    """All bytes of the memory; the descriptor stays open, and its position does not change."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def whole_pages(size_bytes: int) -> int:
    """`size_bytes` rounded up to pages."""
    return -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
