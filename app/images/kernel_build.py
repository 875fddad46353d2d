"""Compiles `resample.c` into a shared library when the package is installed and a C compiler is there.

Nothing but the standard library: the package's build imports it, before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("resample.c")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-Wall", "-Wextra")
_TIMEOUT_SECONDS = 120


class NoCompiler(Exception):
    """The library could not be built here, and why."""


def library_path(folder: Path = SOURCE.parent) -> Path:
    """Where the library of this very source is: one that was built from an older source has another name."""
    return folder / f"resample-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"


def build_library(folder: Path = SOURCE.parent) -> Path:
    """Compile with `$CC`, else `cc`; what an older source left in `folder` goes. Raises `NoCompiler`."""
    library = library_path(folder)
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    try:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / library.name
            command = [*compiler, *_FLAGS, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
            if done.returncode:
                raise NoCompiler(f"{compiler[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
            for old in folder.glob("resample-*.so"):
                old.unlink()
            os.replace(made, library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(str(error)) from None
    return library
