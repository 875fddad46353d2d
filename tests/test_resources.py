"""What the process may use: the container's limits, in both of the kernel's ways of saying them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app import loading
from app.loading import decode_threads
from app.resources import available_cpus, available_memory_bytes
from app.settings import Settings

OWN_CPUS = len(os.sched_getaffinity(0))


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, OWN_CPUS),
        ({"cpu.max": "max 100000"}, OWN_CPUS),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, OWN_CPUS),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_a_cpu_quota_counts(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    """A quota of one CPU is one CPU, under both versions of cgroups; no quota is the affinity."""
    assert available_cpus(write(tmp_path, files)) == cpus


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_memory_limit_counts(tmp_path: Path, name: str) -> None:
    """A memory limit below the machine's counts, under both versions of cgroups."""
    whole = available_memory_bytes(tmp_path)
    assert available_memory_bytes(write(tmp_path, {name: "123456789"})) == 123456789
    assert available_memory_bytes(write(tmp_path, {name: "max"})) == whole
    assert available_memory_bytes(write(tmp_path, {name: str(2**63 - 4096)})) == whole


@pytest.mark.parametrize(("gibibytes", "threads"), [(1, 1), (4, 2), (256, 64)])
def test_decode_threads_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch, gibibytes: int, threads: int) -> None:
    """On 64 CPUs as many images are decoded at once as half of the memory can hold, and one at least."""
    monkeypatch.setattr(loading, "available_cpus", lambda: 64)
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: gibibytes << 30)
    assert decode_threads(Settings()) == threads
    assert decode_threads(Settings(decode_threads=7)) == 7
