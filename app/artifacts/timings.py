"""How long batches took, kept beside the artifact that they were measured with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from ..checkpoints import Graph
from ..files import write_whole
from ..resources import available_memory_bytes
from .machine import machine_digest


class KeptTimings:
    """Batch size → seconds, in a small file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Mapping[int, float]:
        try:
            document = json.loads(self._file.read_bytes())
            return {int(size): float(seconds) for size, seconds in document.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def keep(self, seconds: Mapping[int, float]) -> None:
        """In one step. Where it cannot be written, the next start measures again."""
        if self.read() == dict(seconds):
            return
        with contextlib.suppress(OSError):
            write_whole(self._file, json.dumps(seconds).encode())


def timings_of(graph: Graph | None, threads: int, max_batch_size: int | str) -> KeptTimings | None:
    """Those of `graph` here: by its threads, its memory, the sizes that the setting allows, and this machine.

    None where the graph is not kept.
    """
    if graph is None or graph.path is None:
        return None
    megabytes = available_memory_bytes() // 1_000_000
    name = f"seconds-{threads}-threads-{megabytes}-MB-batch-{max_batch_size}-{machine_digest()}.json"
    return KeptTimings(graph.path.with_name(f"{graph.path.stem}.{name}"))
