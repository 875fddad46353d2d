"""Runs a module of this very package as a program: `python -P start.py app.workers ARGUMENTS`.

`python -m app.workers` runs the first `app` that Python finds. A folder of that name, in the current directory or on
PYTHONPATH, may be another project's. This file finds the package by its own place instead. It is a script as well as a
module: it imports nothing of the package.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import signal
import sys

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_NAME = os.path.basename(_FOLDER)


def command(module: str, *arguments: str, flags: tuple[str, ...] = ()) -> list[str]:
    """The command line of a child that runs `module`, `app.workers` for instance."""
    # -P: no module is looked for beside this file.
    return [sys.executable, "-P", *flags, os.path.join(_FOLDER, "processes", "start.py"), module, *arguments]


def use_this_package() -> None:
    """Make `import app` mean the package that this file lies in, whatever the path says."""
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


if __name__ == "__main__":
    # A parent that holds these back hands that on: this is another process, with handlers of its own.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    del sys.argv[0]
    use_this_package()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
