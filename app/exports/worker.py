"""The process that exports a checkpoint to ONNX: `export_apart` starts it and holds the other end of its channel.

It is a child process because torch, once imported, does not give its memory back. It ends when the channel closes.
Weights to be downloaded it requests from its parent, which alone has the proxies' passwords.

    to this process     start (settings); in answer to a download: file (path) or unreachable (reason)
    from it             step, warn, downloading (progress), download (weights), and last done (key) or error
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from ..checkpoints import PublishedWeights
from ..errors import DownloadUnreachable, ExportFailed, StartError
from ..opening import Fetch, Reporter, find_weights, read_found
from ..processes.channel import Channel, Message
from ..settings import ModelSettings
from .key import key_of, key_parts
from .process import EXPORT_ERRORS, CannotExport, CannotWrite, first_line
from .store import PUBLISHED, Entry, Store

# How long the current work may take to be left.
_LEAVE_SECONDS = 5.0
_NO_MEMORY = (
    "Memory ran out while the checkpoint was exported. Give the service more memory, or set RESNET_BACKEND=torch, "
    "which needs no export."
)


class ChannelReporter:
    """Sends the progress of loading to the parent."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def step(self, text: str) -> None:
        self._channel.tell("step", text=text)

    def warn(self, text: str) -> None:
        self._channel.tell("warn", text=text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        self._channel.tell("downloading", name=name, received=received, expected=expected)


def main(descriptor: str) -> None:
    signal.signal(signal.SIGTERM, _leave)
    channel = Channel.inherited(descriptor, patience_seconds=None)
    messages: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_receive, args=(channel, messages), daemon=True).start()
    settings = ModelSettings.model_validate_json(messages.get().fields["settings"])

    def fetch(weights: PublishedWeights) -> Path:
        channel.send("download", weights=PUBLISHED.dump_json(weights).decode())
        answer = messages.get()
        if answer.kind == "unreachable":
            raise DownloadUnreachable(answer.fields["reason"])
        return Path(answer.fields["path"])

    try:
        channel.tell("done", key=export(settings, ChannelReporter(channel), fetch))
    except Exception as error:
        channel.tell("error", **EXPORT_ERRORS.encode(_sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error as the parent is told of it."""
    if isinstance(error, StartError):
        return error
    if isinstance(error, OSError):
        return CannotWrite(error.strerror or str(error))
    if isinstance(error, MemoryError):
        return StartError(_NO_MEMORY)
    traceback.print_exception(error)
    return CannotExport(first_line(error))


def export(settings: ModelSettings, reporter: Reporter, fetch: Fetch | None = None) -> str:
    """Find, read, export and check a checkpoint, and keep the export; returns its key."""
    from .build import export_into
    from .looking_up import look_up_and_remember

    store = Store(settings.cache_dir)
    with store.unfinished() as unfinished:
        found = find_weights(settings, reporter, lambda: False, look_up_and_remember(store), fetch)
        # Before reading: should the files change meanwhile, the export is of what they were, or is not found again.
        key = key_of(key_parts(settings, found))
        checkpoint = read_found(settings, found, reporter)
        reporter.step(f"Exporting {checkpoint.architecture} for this CPU, once")
        try:
            graph = export_into(checkpoint, unfinished, settings.compute_thread_count)
        except ExportFailed as error:
            # The network's fault, which the next start would meet again, tens of seconds later.
            if not error.may_pass:
                with suppress(OSError):
                    store.remember_failure(key, str(error))
            raise
        store.keep(key, unfinished, Entry.of(checkpoint, graph))
        return key


def _receive(channel: Channel, messages: SimpleQueue[Message]) -> None:
    """The parent's messages. A parent that has ended, or no longer wants the export, has closed the channel."""
    with suppress(OSError):
        while (message := channel.receive()) is not None:
            messages.put(message)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_LEAVE_SECONDS)
    os._exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    # Through the `finally` of unfinished work, which removes it.
    raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1])
