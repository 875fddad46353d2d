"""Memory that processes share, passed by its descriptor.

A memfd has no name that could be left behind, lies in no /dev/shm (64 MB in a container), and is gone with the last
process that has it. Pages that nobody has touched take no memory.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

# That no process can cut it short under another, which reading it would then kill.
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def create_shared_memory(name: str, size_bytes: int) -> int:
    """The descriptor of new memory, all zeros; the caller closes it. Raises `OSError`.

    Without memfd, which only Linux has, it is a file that has lost its name, and not sealed.
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
