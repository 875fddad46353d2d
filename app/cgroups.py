"""Limits of control groups: those of the process's own group and of every group around it.

/proc/self/cgroup says which groups the process is in, /proc/self/mountinfo where their folders are mounted (cgroups(7),
proc_pid_mountinfo(5)). A limit of any group on the way to the root holds for the process. Version 2 has one tree,
version 1 one for each kind of limit, and a machine may have both.
"""

from __future__ import annotations

import re
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


def memory_limits(root: Path = Path("/")) -> list[int]:
    """In bytes. Beyond `memory.high` the kernel slows a process down to what it gives back."""
    limits = []
    for version, folder in _folders("memory", root):
        for name in ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",):
            limits += _numbers(folder / name)[:1]
    return [limit for limit in limits if limit > 0]


def cpu_quotas(root: Path = Path("/")) -> list[float]:
    """In CPUs: the time that the group may use in each period, by the period."""
    quotas = []
    for version, folder in _folders("cpu", root):
        if version == 2:
            figures = _numbers(folder / "cpu.max")
        else:
            figures = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(figures) == 2 and figures[0] > 0 and figures[1] > 0:
            quotas.append(figures[0] / figures[1])
    return quotas


def _folders(controller: str, root: Path) -> list[tuple[int, Path]]:
    """The folders, each with its version, of the groups that limit `controller` for this process, its own first."""
    paths = _paths(controller, root)
    found: list[tuple[int, Path]] = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        if version not in paths or (version == 1 and controller not in kind[-1].split(",")):
            continue
        mounted, at = (_OCTAL.sub(lambda match: chr(int(match[1], 8)), field) for field in fields[3:5])
        top = root / at.lstrip("/")
        found += [(version, each) for each in _with_ancestors(top, _below(paths[version], mounted))]
    return found


def _paths(controller: str, root: Path) -> dict[int, str]:
    """The process's group in the tree of each version."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _below(path: str, mounted: str) -> list[str]:
    """The way from the group that is mounted, `mounted`, to `path`.

    None where the process is not below it: in a container that sees its own group alone, under its path on the host.
    """
    own = [part for part in path.split("/") if part]
    top = [part for part in mounted.split("/") if part]
    if ".." in own or ".." in top or own[: len(top)] != top:
        return []
    return own[len(top) :]


def _with_ancestors(top: Path, parts: list[str]) -> list[Path]:
    folders = [top]
    for part in parts:
        folders.append(folders[-1] / part)
    return folders[::-1]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux, or no /proc
        return []


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file; none where it is not there, and "max" is no number."""
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split() if word.lstrip("-").isdigit()]
    except OSError:
        return []
