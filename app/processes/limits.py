"""Resource limits that a process sets on itself: memory, CPU time, time on the clock, open files.

Standard library only: programs that run without the rest of the package use it too.
"""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def limit(
    *,
    memory_bytes: int | None = None,
    data_bytes: int | None = None,
    cpu_seconds: int | None = None,
    seconds: float | None = None,
    open_files: int | None = None,
) -> None:
    """Limit this process for the rest of its life. In any case it can write to no file and leaves no core file.

    `memory_bytes` is address space, `data_bytes` private writable memory (`RLIMIT_DATA`). After `seconds` of wall-clock
    time the kernel sends SIGALRM, which also ends a process whose parent has died. A lower hard limit stays. A limit
    that the system does not support is skipped (macOS refuses those on memory).
    """
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        if most is not None:
            hard = resource.getrlimit(kind)[1]
            lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with suppress(ValueError, OSError):
                resource.setrlimit(kind, (lowest, lowest))
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def with_growth(measure: str, growth_bytes: int) -> int | None:
    """The `VmSize` (address space) or `VmData` (private writable memory) of this process, plus a growth.

    None if the system has no /proc: then there is no limit to set.
    """
    if not _STATUS.exists():
        return None
    found = re.search(rf"^{measure}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return int(found[1]) * 1024 + growth_bytes if found else None
