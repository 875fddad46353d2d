"""Resources of this process: CPUs, memory, open files and CUDA devices, within its container's limits."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Collection
from pathlib import Path

from .cgroups import cpu_quotas, memory_limits

# What Linux itself takes for the most, unless it is told otherwise (fs.nr_open).
_MOST_OPEN_FILES = 1 << 20


def available_cpus(root: Path = Path("/")) -> int:
    """The process's affinity, cut by the CPU quotas of its cgroups (a container's --cpus, systemd's CPUQuota)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(round(quota) for quota in cpu_quotas(root))]))


def available_memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, cut by the limits of the process's cgroups (a container's --memory, MemoryMax)."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *memory_limits(root)])


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


def raise_open_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, which costs nothing; the limit that holds now.

    A login shell or a service manager gives 1,024, for the sake of programs that use select(2). Each connection is one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def may_run_written_memory() -> bool:
    """Whether memory may be both written and run: not under MemoryDenyWriteExecute of systemd, or SELinux's execmem."""
    kinds = [getattr(mmap, name, None) for name in ("PROT_READ", "PROT_WRITE", "PROT_EXEC")]
    if None in kinds:
        return True
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=sum(kind for kind in kinds if kind)).close()
    except OSError:
        return False
    return True


def return_free_memory() -> None:
    """Return freed memory to the system (glibc keeps it for later allocations of the same thread's arena). Blocks.

    Takes milliseconds for each hundred megabytes. On other C libraries it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
