"""The parent's side of the process that exports."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter

from .. import errors
from ..checkpoints import Found
from ..errors import ExportFailed, LoadCancelled, StartError
from ..processes import Need, child_environment, command
from ..progress import Reporter
from ..settings import ModelSettings

logger = logging.getLogger(__name__)

# In front of the worker's own lines; in libraries' it does not occur.
MARK = "\x1e"
ASKED = TypeAdapter(tuple[ModelSettings, Found])
"""The worker's standard input: one line of JSON."""
_LOOK_SECONDS = 0.1
_EXIT_SECONDS = 10.0
_LAST_LINES = 5


class CannotWrite(Exception):
    """The cache cannot be written; the message says why."""


class CannotExport(Exception):
    """The export failed there, for a reason that is not the network's; the message says which."""


def first_line(error: BaseException) -> str:
    """What a library's error says first, for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")


def export_apart(settings: ModelSettings, found: Found, reporter: Reporter, is_cancelled: Callable[[], bool]) -> str:
    """Have a process of its own export the weights that were found and keep them; returns their key. Blocks.

    Raises the `StartError` that was raised there, one that says how the process ended if it was killed, `CannotWrite`,
    `CannotExport`, and `LoadCancelled`.
    """
    try:
        process = subprocess.Popen(
            command("app.artifacts.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Libraries' own words, of which the last are told if it crashes.
            stderr=subprocess.STDOUT,
            env=child_environment(Need.COMPUTE, {"PYTHONIOENCODING": "utf-8"}),
            # Ctrl-C on a terminal is for the service.
            start_new_session=True,
        )
    except OSError as error:
        raise CannotExport(f"it could not be started: {error.strerror or error}") from None
    assert process.stdin is not None
    assert process.stdout is not None
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    with process.stdout, process.stdin:
        try:
            # It may be gone already.
            with suppress(BrokenPipeError):
                # It downloads nothing: a mirror's password is not for it.
                told = settings.model_settings().model_copy(update={"download_mirror": None})
                process.stdin.write(ASKED.dump_json((told, found)) + b"\n")
                process.stdin.flush()
            for line in _lines(process.stdout.fileno(), is_cancelled):
                # A library's line may have begun without its end: both streams are one.
                words, mark, said = line.partition(MARK)
                if words:
                    last_lines.append(words)
                if not mark:
                    continue
                message = json.loads(said)
                if message["kind"] == "done":
                    return str(message["key"])
                _pass_on(message, reporter)
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise _ended(process.returncode, last_lines)


def _ended(status: int, last_lines: Collection[str]) -> Exception:
    """What a process that ended by itself, without a word of its own, means for the start."""
    said = f" It said last: {' / '.join(last_lines)}" if last_lines else ""
    ended = "The process that reads and exports the checkpoint ended by itself"
    if status == -signal.SIGKILL:
        # The same in this process would end the service.
        return StartError(
            f"{ended} (status {status}, killed: perhaps memory ran out). Give it more memory, or set "
            f"RESNET_BACKEND=torch, which needs no export.{said}"
        )
    if status < 0:
        return ExportFailed(f"{ended} ({_signal_name(-status)}).{said}", may_pass=True)
    return CannotExport(f"its process ended with status {status}{'.' if said else ''}{said.rstrip('. ')}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _pass_on(message: dict[str, Any], reporter: Reporter) -> None:
    """To the reporter; what ended it is raised."""
    kind = message["kind"]
    if kind == "step":
        reporter.step(message["text"])
    elif kind == "warn":
        reporter.warn(message["text"])
    elif kind == "cannot_write":
        raise CannotWrite(message["text"])
    elif kind == "cannot_export":
        raise CannotExport(message["text"])
    else:
        error = getattr(errors, message["type"], StartError)
        raise error(message["text"])


def _lines(descriptor: int, is_cancelled: Callable[[], bool]) -> Iterator[str]:
    """The lines that the process writes until it closes its end. Raises `LoadCancelled`."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if is_cancelled():
                raise LoadCancelled("Stopped while loading.")
            if not selector.select(_LOOK_SECONDS):
                continue
            received = os.read(descriptor, 65536)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
