"""The process that exports: `python -m app.exports.worker`, started by `process.export_apart`.

It is a process of its own because torch, once imported, does not give its memory back. On standard input it is given
the settings as JSON, a line; when that closes, it is no longer wanted. On standard output it says what it does in
lines, each from a `MARK` on, whose last is `done`, `error` or `cannot_write`; everything else is libraries' own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from ..errors import ExportFailed, StartError
from ..opening import find_weights, read_found
from ..settings import Settings
from .key import key_of, key_parts
from .process import MARK
from .store import Entry, Store

# How long what is being done may take to be left.
_LEAVE_SECONDS = 5.0


class LineReporter:
    """Loading's progress as lines for the parent."""

    def step(self, text: str) -> None:
        say("step", text=text)

    def warn(self, text: str) -> None:
        say("warn", text=text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        say("downloading", name=name, received=received, expected=expected)


def say(kind: str, **values: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps({'kind': kind} | values)}\n")
    sys.stdout.flush()


def main() -> None:
    settings = Settings.model_validate_json(sys.stdin.readline())
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        say("done", key=export(settings, LineReporter()))
    except StartError as error:
        say("error", type=type(error).__name__, text=str(error))
    except OSError as error:
        say("cannot_write", text=error.strerror or str(error))


def export(settings: Settings, reporter: LineReporter) -> str:
    """Find, read, export, check and keep; the key that it is kept under."""
    from .build import export_into
    from .looking_up import look_up_and_remember

    store = Store(settings.cache_dir)
    with store.unfinished() as unfinished:
        found = find_weights(settings, reporter, lambda: False, look_up_and_remember(store))
        # Before reading: should the files change meanwhile, the export is of what they were, or is not found again.
        key = key_of(key_parts(settings, found))
        checkpoint = read_found(settings, found, reporter)
        reporter.step(f"Exporting {checkpoint.architecture} for this CPU, once")
        try:
            graph = export_into(checkpoint, unfinished, settings.compute_thread_count)
        except ExportFailed as error:
            # The network's fault, which the next start would meet again, tens of seconds later.
            with suppress(OSError):
                store.remember_failure(key, str(error))
            raise
        store.keep(key, unfinished, Entry.of(checkpoint, graph))
        return key


def _watch_parent() -> None:
    """A parent that is gone, or that has given up, has closed standard input."""
    # Not `sys.stdin`: its lock would be held while the interpreter ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_LEAVE_SECONDS)
    os._exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    # Through the `finally` of a download, which removes its half.
    raise SystemExit(1)


if __name__ == "__main__":
    main()
