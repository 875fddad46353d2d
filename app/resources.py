"""What this process may use of the machine: a container's limits count, not what the host has."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """The process's affinity, cut by a cgroup's CPU quota (a container's --cpus), versions 2 and 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    version_2 = _numbers(cgroup / "cpu.max")
    version_1 = _numbers(cgroup / "cpu" / "cpu.cfs_quota_us") + _numbers(cgroup / "cpu" / "cpu.cfs_period_us")
    for figures in (version_2, version_1):
        if len(figures) == 2 and figures[0] > 0 and figures[1] > 0:
            return max(1, min(cpus, round(figures[0] / figures[1])))
    return cpus


def available_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """The machine's memory, cut by a cgroup's limit (a container's --memory), versions 2 and 1."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limits += _numbers(cgroup / name)
    return min(limits)


def cuda_device_count(library: str = "libcuda.so.1") -> int:
    """CUDA devices that this process may use, asked of the driver itself: importing torch for it would take seconds."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(library)
        # CUDA driver API: CUDA_SUCCESS is 0. CUDA_VISIBLE_DEVICES is heeded here.
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):  # no driver, or none that is one
        return 0
    return count.value


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file; none where it is not there, and "max" is no number."""
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split() if word.lstrip("-").isdigit()]
    except OSError:
        return []
