"""What the process may use: the container's limits, in both of the kernel's ways of saying them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from app import loading
from app.errors import SettingError
from app.loading import DecodePlan, plan_decoding
from app.resources import available_cpus, available_memory_bytes, cuda_device_count
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


def plan(monkeypatch: pytest.MonkeyPatch, gibibytes: int, **settings: Any) -> DecodePlan:
    """What is decoded at once on 64 CPUs with so much memory."""
    monkeypatch.setattr(loading, "available_cpus", lambda: 64)
    monkeypatch.setattr(loading, "available_memory_bytes", lambda: gibibytes << 30)
    return plan_decoding(Settings(**settings))


@pytest.mark.parametrize(("gibibytes", "slots", "spare"), [(1, 1, 0), (4, 2, 0), (16, 10, 0), (256, 64, 101)])
def test_decode_slots_fit_into_the_memory(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int, slots: int, spare: int
) -> None:
    """On 64 CPUs as many images are decoded at once as half of the memory can hold, and one at least."""
    planned = plan(monkeypatch, gibibytes)
    assert (planned.slots, planned.spare) == (slots, spare)
    assert planned.slots * planned.slot_bytes <= gibibytes * 2**30 / 2 or planned.slots == 1


def test_decode_memory_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory set aside bounds the slots, whatever the machine has, and so do smaller images."""
    assert plan(monkeypatch, 256, decode_memory_bytes=2_000_000_000).slots == 2
    assert plan(monkeypatch, 256, decode_memory_bytes=2_000_000_000, decode_threads=1).spare == 1
    small = {"max_megapixels_jpeg": 10, "max_megapixels": 10}
    assert plan(monkeypatch, 4, **small).slots == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decode_threads": 7}, ["RESNET_DECODE_THREADS", "is 7", "832 MB", "hold 2", "at most 2", "5,824,000,000"]),
        ({"decode_threads": 3, "decode_memory_bytes": 1_700_000_000}, ["is 3", "1,700 MB", "hold 2", "2,496,000,000"]),
        ({"decode_memory_bytes": 100_000_000}, ["100 MB", "hold none", "832,000,000"]),
    ],
)
def test_more_slots_than_the_memory_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: list[str]
) -> None:
    """A wish that the memory does not hold ends the start, with the figures and what may be done."""
    with pytest.raises(SettingError) as refusal:
        plan(monkeypatch, 4, **settings)
    for word in [*words, "RESNET_DECODE_MEMORY_BYTES", "--decode-memory-bytes", "RESNET_MAX_MEGAPIXELS_JPEG"]:
        assert word in str(refusal.value)


@pytest.mark.parametrize("library", ["libthere-is-none.so.1", "libc.so.6"])
def test_without_a_driver_there_is_no_cuda_device(library: str) -> None:
    """Where the driver is not there, or what has its name is none, no device is counted and nothing is raised."""
    assert cuda_device_count(library) == 0
