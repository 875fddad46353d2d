"""Starts a module of this package as a program: `python -P start.py app.workers ARGUMENTS`.

`python -m app.workers` would run the first `app` that Python finds, and a folder of that name in the current directory
or on PYTHONPATH may belong to another project. This file finds the package by its own path. It runs as a script too,
so it imports no other module of the package.

`python -P start.py --bare LIMITS app.checkpoints.hdf5_process ARGUMENTS` runs a module's `main` within limits, for
programs that read hostile files. No package's `__init__` runs, so that only the module and its own imports are loaded.
When the limits are in force, a `STARTED` byte is written to standard output. Standard error is closed before: its
reader only needs to know why a program did not start.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

STARTED = b"\x01"
_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NAME = os.path.basename(_FOLDER)
_BARE = "--bare"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(module: str, *arguments: str, flags: tuple[str, ...] = ()) -> list[str]:
    """The command line of a child that runs `module`, `app.workers` for instance."""
    # -P: the folder of this script is not put on the import path.
    return [sys.executable, "-P", *flags, os.path.join(_FOLDER, "processes", "start.py"), module, *arguments]


def bare_command(
    module: str, *arguments: str, limits: Mapping[str, float | None], flags: tuple[str, ...] = ()
) -> list[str]:
    """The command line of a child that runs the `main` of `module` alone, within `limits` (those of `limit`).

    The child is killed when the thread that starts it ends.
    """
    options = json.dumps({"parent": os.getpid(), "limits": dict(limits)})
    # -B: a program that reads hostile files writes no bytecode.
    return command(_BARE, options, module, *arguments, flags=("-B", *flags))


def use_this_package() -> None:
    """Make `import app` import the package of this file, whatever the import path contains."""
    known = sys.modules.get(_NAME)
    if known is not None and _FOLDER in map(os.path.abspath, getattr(known, "__path__", ())):
        return
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        _NAME, os.path.join(_FOLDER, "__init__.py"), submodule_search_locations=[_FOLDER]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)


def _use_bare_packages(module: str) -> None:
    """Make the packages of `module` and of this file importable without running their `__init__`."""
    for name in (_NAME, f"{_NAME}.processes", module.rpartition(".")[0]):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(os.path.dirname(_FOLDER), *name.split("."))]
        sys.modules[name] = package


def _run_bare(options: dict[str, Any], module: str, *arguments: str) -> None:
    _die_with(options["parent"])
    _use_bare_packages(module)
    program = importlib.import_module(module)
    limits = importlib.import_module(f"{_NAME}.processes.limits")
    # Before the limits, which may leave no descriptor for this.
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    limits.limit(**options["limits"])
    os.write(1, STARTED)
    program.main(*arguments)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux only)."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    # The parent may block these signals in its threads, and children inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    if sys.argv[1] == _BARE:
        _run_bare(json.loads(sys.argv[2]), *sys.argv[3:])
    else:
        del sys.argv[0]
        use_this_package()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
