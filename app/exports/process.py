"""The parent's side of the process that exports: start it, answer its requests, pass on its progress and its errors."""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection
from contextlib import closing

from .. import errors
from ..errors import MAY_FALL_BACK, DownloadError, ExportFailed, StartError
from ..opening import LoadCancelled, Reporter, download
from ..processes import Need, child_environment, command
from ..processes.channel import Channel, Message
from ..processes.children import PIPE, WITH_STDOUT, Child, describe_status
from ..processes.error_codec import ErrorCodec
from ..settings import ModelSettings
from .store import PUBLISHED

logger = logging.getLogger(__name__)

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


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for use in a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")


def export_apart(settings: ModelSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> str:
    """Have a child process export the checkpoint of `settings` into the cache; returns its key there. Blocks.

    Raises the `StartError` that was raised there, one that says how the process ended if it was killed, `CannotWrite`,
    `CannotExport`, and `LoadCancelled`.
    """
    try:
        channel, theirs = Channel.pair()
        with theirs:
            child = Child(
                command("app.exports.worker", str(theirs.fileno())),
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
            channel.tell("start", settings=given.model_dump_json())
            while (message := _next(channel, is_cancelled)) is not None:
                if message.kind == "done":
                    return str(message.fields["key"])
                if message.kind == "download":
                    channel.tell(**_download(message.fields["weights"], settings, reporter, is_cancelled))
                else:
                    _pass_on(message, reporter)
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


def _download(
    weights: str, settings: ModelSettings, reporter: Reporter, is_cancelled: Callable[[], bool]
) -> dict[str, str]:
    """The answer to a request for published weights. Raises `DownloadError` and `LoadCancelled`."""
    try:
        file = download(settings, PUBLISHED.validate_json(weights), reporter, is_cancelled)
        return {"kind": "file", "path": str(file)}
    except MAY_FALL_BACK as error:
        if settings.weights_fallback != "none":
            # The fallback is served, and this is why.
            logger.warning("%s", error)
        return {"kind": "unreachable", "reason": str(error)}
    except DownloadError:
        if is_cancelled():
            raise LoadCancelled("Stopped while loading.") from None
        raise


def _pass_on(message: Message, reporter: Reporter) -> None:
    """Progress goes to the reporter; an error that ended the process is raised."""
    fields = message.fields
    if message.kind == "step":
        reporter.step(fields["text"])
    elif message.kind == "warn":
        reporter.warn(fields["text"])
    elif message.kind == "downloading":
        reporter.downloading(fields["name"], fields["received"], fields["expected"])
    else:
        raise EXPORT_ERRORS.decode(fields)
