"""What a measurement names beside its figures: the machine and the versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from PIL import features


def describe(*packages: str) -> str:
    """One line: system, CPUs, Python, Pillow with its JPEG library, numpy, and further packages."""
    named = ", ".join(f"{name} {version(name)}" for name in ("numpy", *packages))
    return (
        f"{platform.platform()}, {len(os.sched_getaffinity(0))} CPUs ({_cpu_name()}), "
        f"Python {platform.python_version()}, Pillow {version('pillow')}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}, {named}"
    )


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
