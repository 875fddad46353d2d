"""The process that reads a checkpoint and writes its artifact: `export_apart` starts it and talks to it over a channel.

It is a child process because libraries that read and compute do not give their memory back. It ends when the channel
closes.

    to this process     start (the settings and the weights that were found)
    from it             step, warn (progress), and last done (key) or error
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from typing import NoReturn

from ..checkpoints import Found, read_and_decide
from ..errors import ExportFailed, StartError, clause_of
from ..processes.channel import Channel
from ..progress import ChannelReporter, Reporter
from ..settings import ModelSettings
from .key import key_of
from .process import ASKED, EXPORT_ERRORS, CannotExport, CannotWrite
from .store import Store

# How long the current work may take to be left.
_LEAVE_SECONDS = 5.0
_NO_MEMORY = (
    "Memory ran out while the checkpoint was exported. Give the service more memory, or set RESNET_BACKEND=torch, "
    "which needs no export."
)


def main(descriptor: str) -> None:
    signal.signal(signal.SIGTERM, _leave)
    channel = Channel.inherited(descriptor, patience_seconds=None)
    start = channel.receive()
    if start is None:
        return
    settings, found = ASKED.validate_python(start.fields["asked"])
    threading.Thread(target=_leave_with_parent, args=(channel,), daemon=True).start()
    try:
        channel.tell("done", key=export(settings, found, ChannelReporter(channel)))
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
    return CannotExport(clause_of(error))


def export(settings: ModelSettings, found: Found, reporter: Reporter) -> str:
    """Read, export and check the weights, and keep the artifact; returns its key."""
    from .build import build
    from .checking import mark_checked

    store = Store(settings.cache_dir)
    with store.scratch() as scratch:
        # Before reading: should the files change meanwhile, the artifact is of what they were, or is not found again.
        key = key_of(settings, found)
        checkpoint = read_and_decide(found, settings, reporter)
        reporter.step(f"Exporting {checkpoint.architecture}, once")
        try:
            made = build(checkpoint, settings.compute_thread_count)
        except ExportFailed as error:
            # The network's fault, which the next start would meet again, tens of seconds later.
            if not error.may_pass:
                with suppress(OSError):
                    store.remember_failure(key, str(error))
            raise
        mark_checked(store.keep(key, scratch, made))
        return key


def _leave_with_parent(channel: Channel) -> None:
    """Wait for the end of the channel: a parent that has ended, or no longer wants the artifact, has closed it."""
    with suppress(OSError):
        while channel.receive() is not None:
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_LEAVE_SECONDS)
    os._exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    # Through the `finally` of unfinished work, which removes it.
    raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1])
