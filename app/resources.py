"""What this process may use of the machine: a container's limits count, not what the host has."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Collection
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


def open_file_limit() -> int:
    """How many files and sockets this process may have open: the soft limit, which it may have raised."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def resident_memory_bytes(pid: int | None = None) -> int:
    """What a process, by default this one, holds now; 0 where it ended, or there is no /proc, which is Linux's."""
    try:
        pages = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


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


# Instruction sets that ONNX Runtime's kernels for 8 bits choose by (onnxruntime/core/mlas/lib/platform.cpp), as
# /proc/cpuinfo names them: x86-64, then AArch64.
_INT8_FEATURES = frozenset(
    {
        *("sse4_1", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"),
        *("asimddp", "i8mm", "sve", "sve2"),
    }
)
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


def int8_features(cpu_info: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Which of the instruction sets that matter to 8-bit products this CPU has; none where the system does not tell."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return _INT8_FEATURES & set(words.split())
    return frozenset()


def saturates(machine: str, features: Collection[str]) -> bool:
    """Whether products of 8 bits are added up in 16, where two of them may not fit: on x86 without VNNI."""
    return machine.lower() in ("x86_64", "amd64", "x86", "i686") and not _VNNI & set(features)


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file; none where it is not there, and "max" is no number."""
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split() if word.lstrip("-").isdigit()]
    except OSError:
        return []
