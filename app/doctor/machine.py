"""The machine, as far as this process may use it, and the software on it."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from ..bench.machine import this_machine, versions
from ..cgroups import cpu_quotas, memory_limits
from ..images.kernel_build import library_path
from ..images.resample import usable_kernel
from ..resources import available_memory_bytes, cuda_device_count, may_run_written_memory
from .report import Report

_FEW_FILES = 1024
# A serving ResNet-50 takes about 700 MB, and its first start more.
_LITTLE_MEMORY_BYTES = 1 << 30
_DRIVER = Path("/proc/driver/nvidia/version")
_DEVICE = Path("/dev/nvidiactl")


def see_machine(report: Report) -> None:
    machine = this_machine()
    report.add("machine", "system", machine.system)
    report.add("machine", "cpu", machine.cpu)
    quotas = cpu_quotas()
    limit = f"; least quota of its cgroups {min(quotas):g}" if quotas else "; no quota of its cgroups"
    report.add("machine", "cpus", f"{machine.usable_cpus} of {machine.host_cpus}{limit}")
    limits = [each for each in memory_limits() if each < 1 << 60]
    limit = f"least limit of its cgroups {_megabytes(min(limits))}" if limits else "no limit of its cgroups"
    report.add("machine", "memory", f"{_megabytes(machine.memory_bytes)}; {limit}")
    if available_memory_bytes() < _LITTLE_MEMORY_BYTES:
        report.problem(
            f"This process may use {_megabytes(machine.memory_bytes)} of memory, and a first start takes about 1 GB. "
            f"Raise the container's or the service's limit (--memory, MemoryMax)."
        )
    _see_files(report)
    _see_user(report)
    report.add(
        "machine", "written memory may be run", "yes" if may_run_written_memory() else "no: PyTorch does without oneDNN"
    )
    _see_gpus(report)


def _see_files(report: Report) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = [("unlimited" if each == resource.RLIM_INFINITY else f"{each:,}") for each in (soft, hard)]
    report.add("machine", "open files", f"{shown[1]} (soft limit {shown[0]}, which serve raises)")
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        report.problem(
            f"At most {hard:,} files and connections can be open at once. Raise the hard limit (ulimit -Hn, "
            f"LimitNOFILE=, --ulimit nofile=65536)."
        )
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder):
            report.add("machine", "temporary files", folder)
    except OSError as error:
        report.add("machine", "temporary files", f"{folder}: {error.strerror}")
        report.problem(
            f"No temporary file can be written to {folder} ({error.strerror}), which several processes need for their "
            f"metrics. Set TMPDIR to a folder with some megabytes of room."
        )


def _see_user(report: Report) -> None:
    user = str(os.getuid())
    with suppress(KeyError):
        user = f"{user} ({pwd.getpwuid(os.getuid()).pw_name})"
    report.add("machine", "user", user)


def _see_gpus(report: Report) -> None:
    count = cuda_device_count()
    driver = "none"
    with suppress(OSError, IndexError):
        driver = _DRIVER.read_text(encoding="utf-8", errors="replace").splitlines()[0].partition(":")[2].strip()
    report.add("machine", "nvidia driver", driver)
    report.add("machine", "cuda devices", count)
    if count == 0 and (driver != "none" or _DEVICE.exists()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cause = f"CUDA_VISIBLE_DEVICES is {visible!r}" if visible is not None else "libcuda.so.1 finds none"
        report.problem(
            f"There is an NVIDIA driver and no device that can be used: {cause}. Let the process have it (--gpus, "
            f"the NVIDIA container toolkit), or set RESNET_DEVICE=cpu."
        )


def see_software(report: Report) -> None:
    for name, version in versions().items():
        report.add("software", name, version)
    report.add("software", "interpreter", sys.executable or "unknown")
    report.add("software", "installed in", Path(__file__).parent.parent)
    compiler = shutil.which((os.environ.get("CC") or "cc").split()[0])
    report.add("software", "compiler", compiler or "none")
    kernel = library_path()
    if usable_kernel() is not None:
        report.add("software", "compiled resize", kernel.name)
        return
    report.add("software", "compiled resize", "cannot be used" if kernel.exists() else "was not built")
    cure = "Install the package again" if compiler else "Install a C compiler (gcc), then the package again"
    report.note(f"There is no compiled resize that can be used, so Pillow resizes images, more slowly. {cure}.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
