"""CPU time, memory and open files of a process with its children, read from /proc (Linux)."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..resources import resident_memory_bytes

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class MemorySample:
    """A process with its children at one moment; memory that several of them share counts once for each."""

    seconds: float
    """Since the watch began."""
    rss_bytes: int
    open_files: int


def family(pid: int) -> list[int]:
    """The process and its living descendants."""
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(word) for word in children.read_text(encoding="ascii").split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of the process and its living children, in all their threads."""
    return sum(_cpu_seconds(each) for each in family(pid))


def rss_bytes(pid: int) -> int:
    return sum(resident_memory_bytes(each) for each in family(pid))


def proportional_kilobytes(pid: int) -> int:
    """Memory (PSS) of the process and its children: a page that several of them share counts once in all."""
    rollups = [Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii") for each in family(pid)]
    return sum(int(size) for each in rollups for size in re.findall(r"^Pss: +(\d+) kB", each, re.MULTILINE))


def open_files(pid: int) -> int:
    """Open files, sockets and pipes."""
    return sum(_open_files(each) for each in family(pid))


def _cpu_seconds(pid: int) -> float:
    with suppress(OSError):
        # The name, in brackets, may contain anything; the 14th and 15th fields are utime and stime (proc_pid_stat(5)).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
    return 0.0


def _open_files(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


@asynccontextmanager
async def memory_watch(pid: int | None, every_seconds: float = 1.0) -> AsyncIterator[list[MemorySample]]:
    """Samples of a process, added while the block runs, the first at its start and the last at its end; None: none."""
    samples: list[MemorySample] = []
    if pid is None:
        yield samples
        return
    began = time.monotonic()

    def sample() -> None:
        samples.append(MemorySample(time.monotonic() - began, rss_bytes(pid), open_files(pid)))

    async def watch() -> None:
        while True:
            await asyncio.sleep(every_seconds)
            sample()

    sample()
    task = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        task.cancel()
        sample()
