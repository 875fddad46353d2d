"""The machine as far as ONNX Runtime's work depends on it: the CPU, and the version of the runtime."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FIELDS = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")


def machine_digest() -> str:
    """Short, for a file's name. The runtime optimises a graph for this CPU, and another version of it otherwise."""
    parts = [*cpu_features(), version("onnxruntime")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def cpu_features(cpu_info: Path = _CPU_INFO) -> list[str]:
    """The first CPU's model and instruction sets."""
    try:
        first = cpu_info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return [platform.machine(), platform.processor()]
    lines = [line.partition(":") for line in first.splitlines()]
    told = {name.strip(): " ".join(value.split()) for name, _, value in lines}
    return [platform.machine(), *(told.get(name, "") for name in _CPU_FIELDS)]
