"""The parent's side of the process that exports: start it, pass on its progress and its errors."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Collection
from contextlib import closing

from pydantic import TypeAdapter

from .. import errors
from ..checkpoints import Found
from ..errors import ExportFailed, LoadCancelled, StartError
from ..processes import Need, child_environment, command
from ..processes.channel import Channel, Message
from ..processes.children import PIPE, WITH_STDOUT, Child, describe_status
from ..processes.error_codec import ErrorCodec
from ..progress import Reporter, report
from ..settings import ModelSettings

ASKED = TypeAdapter(tuple[ModelSettings, Found])
"""The argument of the child's `start` message, as JSON."""
_LOOK_SECONDS = 0.1
_EXIT_SECONDS = 10.0
_LAST_LINES = 5
_MOST_LINE_BYTES = 4096


class CannotWrite(Exception):
    """The cache cannot be written; the message says why."""


class CannotExport(Exception):
    """The export failed there, for a reason that is not the network's; the message says which."""


EXPORT_ERRORS = ErrorCodec[Exception](
    CannotExport,
    CannotWrite,
    *(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StartError)),
)


def export_apart(settings: ModelSettings, found: Found, reporter: Reporter, is_cancelled: Callable[[], bool]) -> str:
    """Have a child process export the weights `found` into the cache; returns their key there. Blocks.

    Raises the `StartError` that was raised there, one that says how the process ended if it was killed, `CannotWrite`,
    `CannotExport`, and `LoadCancelled`.
    """
    try:
        channel, theirs = Channel.pair()
        with theirs:
            child = Child(
                command("app.artifacts.worker", str(theirs.fileno())),
                child_environment(Need.COMPUTE, {"PYTHONIOENCODING": "utf-8"}),
                # Libraries' own output, whose last lines are shown if the process crashes.
                stdout=PIPE,
                stderr=WITH_STDOUT,
                descriptors=(theirs.fileno(),),
            )
    except OSError as error:
        raise CannotExport(f"it could not be started: {error.strerror or error}") from None
    output = _Output(child)
    try:
        with closing(channel):
            # The child downloads nothing, so the password of a mirror is left out.
            given = settings.model_settings().model_copy(update={"download_mirror": None})
            channel.tell("start", asked=ASKED.dump_python((given, found), mode="json"))
            while (message := _next(channel, is_cancelled)) is not None:
                if message.kind == "done":
                    return str(message.fields["key"])
                if not report(message, reporter):
                    raise EXPORT_ERRORS.decode(message.fields)
    finally:
        # It ends when its channel is closed.
        status = child.wait(_EXIT_SECONDS)
    raise _ended(status, output.last_lines())


def _next(channel: Channel, is_cancelled: Callable[[], bool]) -> Message | None:
    """The child's next message; None at its end. Raises `LoadCancelled`."""
    while not is_cancelled():
        if channel.is_readable(_LOOK_SECONDS):
            return channel.receive()
    raise LoadCancelled("Stopped while loading.")


class _Output:
    """The last lines that the child has written to its standard output and error."""

    def __init__(self, child: Child) -> None:
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, args=(child,), daemon=True)
        self._reader.start()

    def last_lines(self) -> Collection[str]:
        """Once the child has ended."""
        # A process that it has started may still hold the pipe open.
        self._reader.join(_LOOK_SECONDS * 10)
        return list(self._lines)

    def _read(self, child: Child) -> None:
        with child.stdout as pipe:
            while line := pipe.readline(_MOST_LINE_BYTES):
                if words := line.decode(errors="replace").rstrip("\n"):
                    self._lines.append(words)


def _ended(status: int, last_lines: Collection[str]) -> Exception:
    """The error for a process that ended without a message of its own."""
    said = f" It said last: {' / '.join(last_lines)}" if last_lines else ""
    ended = "The process that reads and exports the checkpoint ended by itself"
    if status == -signal.SIGKILL:
        # The same in this process would end the service.
        return StartError(
            f"{ended} (status {status}, killed: perhaps memory ran out). Give it more memory, or set "
            f"RESNET_BACKEND=torch, which needs no export.{said}"
        )
    if status < 0:
        return ExportFailed(f"{ended} ({describe_status(status)}).{said}", may_pass=True)
    return CannotExport(f"its process ended with status {status}{'.' if said else ''}{said.rstrip('. ')}")
