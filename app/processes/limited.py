"""Runs a program that reads a hostile file within limits on its memory and time, and takes its answer.

Libraries such as HDF5 and ONNX Runtime can crash on a bad file, or take all memory. In a child process that only means
that the file is bad, and the caller continues.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, TypeVar

from .children import PIPE, Child
from .environment import ONE_THREAD, child_environment, loader_environment
from .shared_memory import put_in_memory
from .start import STARTED, bare_command

T = TypeVar("T")

_MOST_REASON = 300


class NotStarted(Exception):
    """The program could not run, which says nothing about the file. The message has the reason."""


class Ended(Exception):
    """The program crashed, went over a limit, or ended with an error of its own."""


class OutOfTime(Ended):
    """The program took longer than `Limits.seconds`."""


@dataclass(frozen=True, slots=True)
class Limits:
    memory_bytes: int
    """Address space, with the interpreter and its libraries."""
    cpu_seconds: int
    seconds: float
    """Wall-clock time."""
    open_files: int | None = None
    """Descriptors, including the three standard streams."""


def run_limited(
    module: str,
    arguments: Sequence[str],
    take: Callable[[IO[bytes]], T],
    limits: Limits,
    *,
    data: bytes = b"",
    environment: Mapping[str, str] | None = None,
    standard_library_only: bool = False,
) -> T:
    """Run `main(*arguments)` of `module` with `data` as standard input; returns the result of `take(standard output)`.

    `take` reads while the program runs, so that a large answer is in memory only once. `environment` is added to the
    child's. With `standard_library_only` the child has no installed packages, and only the environment variables that
    its interpreter needs. Raises `NotStarted`; `Ended` or `OutOfTime`, also if `take` raises `ValueError`, `KeyError`
    or `TypeError` for the output; and any other error of `take`.
    """
    try:
        child = _start(module, arguments, limits, data, environment, standard_library_only)
    except OSError as error:
        raise NotStarted(error.strerror or str(error)) from None
    is_late = threading.Event()

    def stop() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(limits.seconds, stop)
    timer.start()
    with child.stdout, child.stderr:
        try:
            if child.stdout.read(len(STARTED)) != STARTED:
                said = child.stderr.read()
                reason = _why_not_started(child.wait(), said)
                raise OutOfTime if is_late.is_set() else NotStarted(reason)
            taken = take(child.stdout)
            if child.wait() != 0:
                raise Ended
            return taken
        except (Ended, ValueError, KeyError, TypeError):
            raise OutOfTime if is_late.is_set() else Ended from None
        finally:
            timer.cancel()
            child.kill()
            child.wait()


def _start(
    module: str,
    arguments: Sequence[str],
    limits: Limits,
    data: bytes,
    environment: Mapping[str, str] | None,
    standard_library_only: bool,
) -> Child:
    # If this process is killed and cannot end the program, the kernel does.
    given = asdict(limits) | {"seconds": 2 * limits.seconds + 1}
    flags = ("-I", "-S") if standard_library_only else ()
    own = child_environment(more=ONE_THREAD | dict(environment or {}))
    # Memory instead of a pipe: no thread has to write while the answer is read.
    stdin = put_in_memory("resnet-examined", data)
    try:
        return Child(
            bare_command(module, *arguments, limits=given, flags=flags),
            loader_environment() if standard_library_only else own,
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
            folder="/" if standard_library_only else None,
        )
    finally:
        os.close(stdin)


def _why_not_started(status: int, said: bytes) -> str:
    """The last line that the loader or the interpreter wrote, or the status."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    if lines:
        return lines[-1][:_MOST_REASON].rstrip(". ")
    return f"the process that examines it ended with status {status}"
