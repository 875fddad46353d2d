"""On what it was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    """Where this process runs; a container's limits are what counts."""

    cpu: str
    host_cpus: int
    usable_cpus: int
    """After affinity and the cgroup's quota: what the service plans with."""
    memory_bytes: int
    """After the cgroup's limit."""
    system: str
    gpu: str | None = None
    """The device that the model runs on, where that is none of the CPUs."""


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
    """Of this service, Python, and what is on the road of a request, as they are installed here."""
    found = {"resnet-serve": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
