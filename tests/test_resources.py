"""What the process may use: the container's limits, in both of the kernel's ways of saying them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from app import decoding
from app.decoding import DecodePlan, plan_decoding
from app.errors import SettingError
from app.resources import available_cpus, available_memory_bytes, cuda_device_count
from app.settings import Settings

OWN_CPUS = len(os.sched_getaffinity(0))


def on_machine(folder: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A root in which the process is in `groups`, the trees are mounted as `mounts` say, and they have these files.

    A mount is: the kind with its options, what of the tree is mounted, and where.
    """
    lines = [line.split() for line in mounts.splitlines() if line.strip()]
    told = "".join(
        f"31 23 0:{28 + number} {mounted} {at} rw,relatime shared:9 - {kind} cgroup rw,{options}\n"
        for number, (kind, options, mounted, at) in enumerate(lines)
    )
    own = {"proc/self/cgroup": "".join(f"{line.strip()}\n" for line in groups.split()), "proc/self/mountinfo": told}
    return write(folder, own | files)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


TWO = ("0::/", "cgroup2 nsdelegate / /sys/fs/cgroup")
ONE = (
    "4:memory:/docker/ab 1:cpu,cpuacct:/docker/ab",
    "cgroup memory /docker/ab /sys/fs/cgroup/memory\ncgroup cpu,cpuacct /docker/ab /sys/fs/cgroup/cpu,cpuacct",
)
SYSTEMD = ("0::/system.slice/resnet-serve.service", "cgroup2 nsdelegate / /sys/fs/cgroup")
SLICE, SERVICE = "sys/fs/cgroup/system.slice", "sys/fs/cgroup/system.slice/resnet-serve.service"
CPU_1 = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("machine", "files", "cpus"),
    [
        (TWO, {}, OWN_CPUS),
        (TWO, {"sys/fs/cgroup/cpu.max": "max 100000"}, OWN_CPUS),
        (TWO, {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        (TWO, {"sys/fs/cgroup/cpu.max": "20000 100000"}, 1),
        (ONE, {f"{CPU_1}/cpu.cfs_quota_us": "-1", f"{CPU_1}/cpu.cfs_period_us": "100000"}, OWN_CPUS),
        (ONE, {f"{CPU_1}/cpu.cfs_quota_us": "100000", f"{CPU_1}/cpu.cfs_period_us": "100000"}, 1),
        (SYSTEMD, {f"{SERVICE}/cpu.max": "100000 100000"}, 1),
        (SYSTEMD, {f"{SERVICE}/cpu.max": "max 100000", f"{SLICE}/cpu.max": "100000 100000"}, 1),
        (SYSTEMD, {"sys/fs/cgroup/user.slice/cpu.max": "100000 100000"}, OWN_CPUS),
    ],
)
def test_a_cpu_quota_counts(tmp_path: Path, machine: tuple[str, str], files: dict[str, str], cpus: int) -> None:
    """A quota of one CPU, of the process's own cgroup or one around it, is one CPU; no quota is the affinity."""
    assert available_cpus(on_machine(tmp_path, *machine, files)) == cpus


@pytest.mark.parametrize(
    ("machine", "files"),
    [
        (TWO, ["sys/fs/cgroup/memory.max"]),
        (TWO, ["sys/fs/cgroup/memory.high"]),
        (ONE, ["sys/fs/cgroup/memory/memory.limit_in_bytes"]),
        (SYSTEMD, [f"{SERVICE}/memory.max"]),
        (SYSTEMD, [f"{SLICE}/memory.max"]),
        # A container of version 1 that sees the host's whole tree, within a group of its own.
        (
            ("4:memory:/kubepods/pod1/ab", "cgroup memory / /sys/fs/cgroup/memory"),
            ["sys/fs/cgroup/memory/kubepods/pod1/memory.limit_in_bytes"],
        ),
        # Mounted from a namespace that the process has left, and at a place with a space in its name.
        (("0::/../other", "cgroup2 rw / /sys/fs/my\\040groups"), ["sys/fs/my groups/memory.max"]),
        # Both versions on one machine: version 2 has no limits of its own.
        (
            ("4:memory:/job 0::/job", "cgroup memory / /cg/memory\ncgroup2 rw / /cg/unified"),
            ["cg/memory/job/memory.limit_in_bytes"],
        ),
    ],
)
def test_a_memory_limit_counts(tmp_path: Path, machine: tuple[str, str], files: list[str]) -> None:
    """A limit of the process's own cgroup or of one around it counts, in both versions, wherever it is mounted."""
    whole = available_memory_bytes(on_machine(tmp_path, *machine, {}))
    (name,) = files
    assert available_memory_bytes(write(tmp_path, {name: "123456789"})) == 123456789
    assert available_memory_bytes(write(tmp_path, {name: "max"})) == whole
    assert available_memory_bytes(write(tmp_path, {name: str(2**63 - 4096)})) == whole


def test_the_least_of_nested_limits_holds(tmp_path: Path) -> None:
    """Of the limits from the process's group to the root, the least is what it may use; a sibling's is not its."""
    files = {
        f"{SERVICE}/memory.max": "3000000000",
        f"{SLICE}/memory.max": "2000000000",
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/system.slice/other.service/memory.max": "1000",
    }
    assert available_memory_bytes(on_machine(tmp_path, *SYSTEMD, files)) == 2_000_000_000


def test_this_machines_own_groups_are_read() -> None:
    """The limit that this process's own folders hold is the one that is found, where Linux has any."""
    found = available_memory_bytes()
    assert 0 < found <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory_bytes(Path("/nowhere")) >= found


def plan(monkeypatch: pytest.MonkeyPatch, gibibytes: int, **settings: Any) -> DecodePlan:
    """What is decoded at once on 64 CPUs with so much memory."""
    monkeypatch.setattr(decoding, "available_cpus", lambda: 64)
    monkeypatch.setattr(decoding, "available_memory_bytes", lambda: gibibytes << 30)
    return plan_decoding(Settings(**settings))


@pytest.mark.parametrize(("gibibytes", "slots", "spare"), [(1, 1, 0), (4, 2, 0), (16, 10, 0), (256, 64, 101)])
def test_decode_slots_fit_into_the_memory(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int, slots: int, spare: int
) -> None:
    """On 64 CPUs as many images are decoded at once as half of the memory can hold, and one at least."""
    planned = plan(monkeypatch, gibibytes)
    assert (planned.slots, planned.spare) == (slots, spare)
    assert planned.slots * planned.slot_bytes <= gibibytes * 2**30 / 2 or planned.slots == 1


@pytest.mark.parametrize(
    ("megabytes", "settings", "limits"),
    [
        (600, {}, (23.0, 12.5)),
        (1600, {}, (61.5, 25.0)),
        (1700, {}, (64.0, 25.0)),
        (600, {"max_megapixels_jpeg": 12.0, "max_megapixels": 5.0}, (12.0, 5.0)),
        (30, {}, (2.0, 2.0)),
        (600, {"decode_memory_bytes": 832_000_000}, (64.0, 25.0)),
    ],
)
def test_image_limits_fit_into_little_memory(
    monkeypatch: pytest.MonkeyPatch, megabytes: int, settings: dict[str, Any], limits: tuple[float, float]
) -> None:
    """Where half of the memory does not hold the largest image, the limits are lowered until it does."""
    monkeypatch.setattr(decoding, "available_memory_bytes", lambda: megabytes * 1_000_000)
    wanted = Settings(**settings)
    fitted = decoding.fit_image_limits(wanted)
    assert (fitted.max_megapixels_jpeg, fitted.max_megapixels) == limits
    assert (fitted is wanted) == (limits == (wanted.max_megapixels_jpeg, wanted.max_megapixels))
    if megabytes >= 600 and not settings:
        assert plan_decoding(fitted).slot_bytes <= megabytes * 1_000_000 / 2
    if fitted is not wanted:
        described = decoding.describe_fitted_limits(fitted)
        assert f"{limits[0]:g} megapixels" in described
        assert "RESNET_DECODE_MEMORY_BYTES" in described


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
