"""What an export depends on. Two starts that agree in all of it may share one."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..checkpoints import CheckpointFile, depends_on, offline_demo_file
from ..opening import Found
from ..settings import ModelSettings

# What reads, builds, exports, optimises or checks.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "h5py", "onnx", "onnxruntime")
_ROOT = Path(__file__).parent.parent
_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FIELDS = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")


def key_parts(settings: ModelSettings, found: Found) -> dict[str, Any]:
    """Everything that the export of `found` depends on, by name. Reads the checkpoint's bytes; imports no torch.

    Raises `CheckpointError` as reading the checkpoint would, and `OSError`.
    """
    path = found.source.path if isinstance(found.source, CheckpointFile) else offline_demo_file()
    return {
        "files": depends_on(path, settings.labels, settings.max_checkpoint_bytes),
        "stands_in": found.fallback_warning,
        "settings": settings.export_settings(),
        "code": code_digest(),
        "python": sys.version,
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": cpu_features(),
    }


def key_of(parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_digest(root: Path = _ROOT) -> str:
    """SHA-256 of this package's sources and labels: a decision that is made otherwise makes another export."""
    sha256 = hashlib.sha256()
    for room in ("checkpoints", "networks", "artifacts", "backends"):
        for file in sorted((root / room).glob("*.py")):
            sha256.update(file.name.encode() + b"\0" + file.read_bytes())
    for name in ("opening.py", "labels.py", "preprocessing.py", "types.py", "data/imagenet1k_labels.txt"):
        sha256.update((root / name).read_bytes())
    return sha256.hexdigest()


def cpu_features(cpu_info: Path = _CPU_INFO) -> list[str]:
    """The first CPU's model and instruction sets, which the runtime's optimised graph is made for."""
    try:
        first = cpu_info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return [platform.machine(), platform.processor()]
    fields = [line.partition(":") for line in first.splitlines()]
    told = {name.strip(): " ".join(value.split()) for name, _, value in fields}
    return [platform.machine(), *(told.get(name, "") for name in _CPU_FIELDS)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
