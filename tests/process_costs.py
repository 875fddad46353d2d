"""What a request costs a service in a process of its own: memory from /proc, and the shortest of several times."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import ServiceProcess, service_process

MEGABYTE = 1 << 20


@contextmanager
def ready_service(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> Iterator[ServiceProcess]:
    """The service with the null backend, ready, its `address` known."""
    with service_process("--backend", "null", *flags, folder=folder, environment=environment) as service:
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert found
        service.address = found[0]
        yield service


def memory_bytes(service: ServiceProcess, key: str) -> int:
    """VmHWM: the most that it has held since `growth` looked; VmRSS: what it holds now."""
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="ascii")
    return int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) * 1024


def growth(service: ServiceProcess, work: Callable[[], object]) -> int:
    """How far the service's memory rose above what it held, while `work` was done."""
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = memory_bytes(service, "VmRSS")
    work()
    return memory_bytes(service, "VmHWM") - before


def least_cpu(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of this process's CPU time that `work` takes at least: other processes do not count in it."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def quickest(work: Callable[[], object], times: int = 5) -> float:
    """Seconds that `work` takes where nothing else of the machine's comes between."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
