"""A program in a process of its own, with a bound on its time and memory: for libraries that a bad file can crash.

Two sides in one file. `run_limited` starts this file as a script; the script sets the limits, which then hold for
whatever the program imports, and becomes the program.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

_PACKAGE = "limited"


def run_limited(
    program: str,
    arguments: Sequence[str] = (),
    *,
    data: bytes = b"",
    memory_bytes: int,
    cpu_seconds: int,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """What the program beside this file (`hdf5_process.py`) writes when `data` is its standard input.

    Empty where it crashed or went over `memory_bytes` of address space, `cpu_seconds`, or `seconds` on the clock.
    """
    try:
        done = subprocess.run(
            _command(program, arguments, memory_bytes, cpu_seconds),
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            env=_environment(environment),
        )
    except subprocess.TimeoutExpired:
        return b""
    return done.stdout if done.returncode == 0 else b""


def stream_limited(
    program: str,
    arguments: Sequence[str],
    take: Callable[[IO[bytes]], T],
    *,
    memory_bytes: int,
    cpu_seconds: int,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> T | None:
    """What `take` makes of what the program writes, as it is written: for more than should be held twice.

    None where the program crashed or went over its limits, as for `run_limited`. What `take` raises passes through.
    """
    with subprocess.Popen(
        _command(program, arguments, memory_bytes, cpu_seconds),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(environment),
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            taken = take(process.stdout)
            return taken if process.wait() == 0 else None
        finally:
            timer.cancel()
            process.kill()


def _command(program: str, arguments: Sequence[str], memory_bytes: int, cpu_seconds: int) -> list[str]:
    folder = Path(__file__).parent
    # -P: no module is looked for beside the program.
    return [
        *(sys.executable, "-P", str(folder / "limited_process.py")),
        *(str(memory_bytes), str(cpu_seconds), str(folder / program), *arguments),
    ]


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    # One thread: each would reserve memory of its own.
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **(more or {})}


def limit(memory_bytes: int, cpu_seconds: int) -> None:
    """Of this process, where the system can: memory, time, no file written, no core file."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            continue


def become(program: Path) -> None:
    """Run the program beside this file as `__main__` of a package of its own: it can import the modules beside it.

    `from .onnx_wire import walk` finds that file and runs nothing else of the real package. No `import json` finds a
    file there.
    """
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(program.parent)]
    sys.modules[_PACKAGE] = package
    runpy.run_module(f"{_PACKAGE}.{program.stem}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    limit(int(sys.argv[1]), int(sys.argv[2]))
    del sys.argv[:3]
    become(Path(sys.argv[0]))
