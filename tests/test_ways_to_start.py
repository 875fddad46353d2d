"""Processes are started, limited and given memory in one room, so that each child is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

APP = REPOSITORY / "app"
MODULES = {"subprocess", "multiprocessing", "_posixsubprocess", "pty"}
NAMES = {
    *(
        "create_subprocess_exec",
        "create_subprocess_shell",
        "subprocess_exec",
        "subprocess_shell",
        "ProcessPoolExecutor",
    ),
    *("fork", "forkpty", "posix_spawn", "posix_spawnp", "popen", "setrlimit", "prlimit", "pass_fds"),
    *("execv", "execve", "execvp", "execvpe", "spawnv", "spawnve", "spawnvp", "PYTHONPATH", "prctl", "send_fds"),
}
ELSEWHERE = {
    # Runs the C compiler while the package is built, when nothing of it can be imported.
    "images/kernel_build.py": {"subprocess"},
    # Raises the limit of this very process.
    "resources.py": {"setrlimit"},
}


def used(source: str) -> Iterator[str]:
    """The modules that are imported and the names that are used, also as texts, that start or limit processes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from {each.name.partition(".")[0] for each in names} & MODULES
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from {module.partition(".")[0]} & MODULES
                yield from {each.name for each in names} & NAMES
            case ast.Attribute(value=ast.Name(id="os"), attr="system"):  # not the platform's name
                yield "os.system"
            case (
                ast.Attribute(attr=name)
                | ast.Name(id=name)
                | ast.keyword(arg=str(name))
                | ast.Constant(value=str(name))
            ):
                yield from {name} & NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_is_found_in_a_source(name: str) -> None:
    """The search finds a name as an attribute, as a text and as an argument."""
    assert set(used(f"import os\nos.{name}()")) == {name}
    assert set(used(f"getattr(os, {name!r})")) == {name}
    assert set(used(f"call({name}=1)")) == {name}
    assert set(used(f"from os import {name}")) == {name}


def test_only_one_room_starts_and_limits_processes() -> None:
    """Outside of `processes` no module starts a process, sets a resource limit or computes an import path."""
    found = {}
    for path in sorted(APP.rglob("*.py")):
        inside = path.relative_to(APP)
        if inside.parts[0] != "processes" and (names := set(used(path.read_text(encoding="utf-8")))):
            found[str(inside)] = names
    assert found == ELSEWHERE
