"""The machine and the versions of a measurement."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import features

from .. import __version__
from ..resources import available_cpus, available_memory_bytes

_PACKAGES = (
    "torch",
    "torchvision",
    "onnxruntime",
    "pillow",
    "numpy",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of this process, within its container's limits."""

    cpu: str
    host_cpus: int
    usable_cpus: int
    """Within affinity and the cgroup's quota: the CPUs that the service plans with."""
    memory_bytes: int
    """Within the cgroup's limit."""
    system: str
    gpu: str | None = None
    """The GPU that the model runs on."""

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ""
        limits = f"{self.usable_cpus} of {self.host_cpus} CPUs, {self.memory_bytes / 1e9:.1f} GB"
        return f"{self.cpu}, {limits}{gpu}, {self.system}"


def this_machine(gpu: str | None = None) -> Machine:
    return Machine(
        cpu=_cpu_name(),
        host_cpus=os.cpu_count() or 1,
        usable_cpus=available_cpus(),
        memory_bytes=available_memory_bytes(),
        system=platform.platform(),
        gpu=gpu,
    )


def versions() -> dict[str, str]:
    """The installed versions of this service, Python, and the libraries that a request passes through."""
    found = {"resnet-serve": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"libjpeg-turbo": features.version("libjpeg_turbo") or "none"}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
