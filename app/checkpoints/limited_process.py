"""A program in a process of its own, with a bound on its time and memory: for libraries that a bad file can crash.

Two sides in one file. `run_limited` starts this file as a script; the script sets the limits, which then hold for
whatever the program imports, and becomes the program.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")

_PACKAGE = "limited"
_STARTED = b"\x01"
_MAX_REASON = 300


class NotStarted(Exception):
    """The program could not be run here, whatever it was to examine. The message says why."""


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
    Raises `NotStarted`.
    """
    try:
        done = subprocess.run(
            _command(program, arguments, memory_bytes, cpu_seconds),
            input=data,
            capture_output=True,
            timeout=seconds,
            check=False,
            env=_environment(environment),
        )
    except subprocess.TimeoutExpired:
        return b""
    except OSError as error:
        raise NotStarted(error.strerror or str(error)) from None
    if not done.stdout.startswith(_STARTED):
        raise NotStarted(why_not_started(done.returncode, done.stderr))
    return done.stdout[len(_STARTED) :] if done.returncode == 0 else b""


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
    Raises `NotStarted`.
    """
    try:
        started = subprocess.Popen(
            _command(program, arguments, memory_bytes, cpu_seconds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(environment),
        )
    except OSError as error:
        raise NotStarted(error.strerror or str(error)) from None
    with started as process:
        assert process.stdout is not None
        assert process.stderr is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            if process.stdout.read(len(_STARTED)) != _STARTED:
                said = process.stderr.read()
                raise NotStarted(why_not_started(process.wait(), said))
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
    from ..processes import ONE_THREAD, child_environment

    return child_environment(more=ONE_THREAD | dict(more or {}))


def why_not_started(status: int, said: bytes) -> str:
    """Why a process ended before its program began: the last that the loader or the interpreter said, or the status."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    if lines:
        return lines[-1][:_MAX_REASON].rstrip(". ")
    return f"the process that examines it ended with status {status}"


def not_examined(path: Path, reason: str) -> Exception:
    """The error for a file of which nothing is known, since the process that would read it cannot run here."""
    from ..errors import CheckpointError

    return CheckpointError(
        f"{path} could not be examined, because the process that examines it could not run: {reason}. Checkpoints are "
        f"read by {sys.executable or 'Python'} in processes of their own; see that it starts from this service's "
        f"environment (LD_LIBRARY_PATH, memory, open files), then start again."
    )


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


def say_started() -> None:
    """What comes on stderr after this is about the file, endless perhaps, and nobody reads it."""
    os.write(1, _STARTED)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)


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
    # A parent that holds these back hands that on.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    limit(int(sys.argv[1]), int(sys.argv[2]))
    del sys.argv[:3]
    say_started()
    become(Path(sys.argv[0]))
