"""The process that reads a checkpoint and writes its artifact: `python -m app.artifacts.worker`.

`process.export_apart` starts it. It is a process of its own since libraries that read and compute do not give their
memory back. Its standard input is one line of JSON, the settings and the weights that were found; when that closes,
nobody waits for it any more. On standard output it reports its steps in lines, each from a `MARK` on; the last of them
is `done`, `error`, `cannot_write` or `cannot_export`. Everything else there comes from libraries.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NoReturn

from ..checkpoints import Found, read_and_decide
from ..errors import ExportFailed, StartError
from ..progress import Reporter
from ..settings import ModelSettings
from .key import key_of
from .process import ASKED, MARK, first_line
from .store import Store

# How long what is being done may take to be left.
_LEAVE_SECONDS = 5.0
_NO_MEMORY = (
    "Memory ran out while the checkpoint was exported. Give the service more memory, or set RESNET_BACKEND=torch, "
    "which needs no export."
)


class LineReporter:
    """Loading's progress as lines for the parent."""

    def step(self, text: str) -> None:
        say("step", text=text)

    def warn(self, text: str) -> None:
        say("warn", text=text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        raise NotImplementedError("The parent downloads.")


def say(kind: str, **values: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps({'kind': kind} | values)}\n")
    sys.stdout.flush()


def main() -> None:
    signal.signal(signal.SIGTERM, _leave)
    told: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_hear_parent, args=(told,), daemon=True).start()
    settings, found = ASKED.validate_json(told.get())
    try:
        say("done", key=export(settings, found, LineReporter()))
    except StartError as error:
        say("error", type=type(error).__name__, text=str(error))
    except OSError as error:
        say("cannot_write", text=error.strerror or str(error))
    except MemoryError:
        say("error", type="StartError", text=_NO_MEMORY)
    except Exception as error:
        traceback.print_exc()
        say("cannot_export", text=first_line(error))


def export(settings: ModelSettings, found: Found, reporter: Reporter) -> str:
    """Read, export, check and keep; the key that it is kept under."""
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


def _hear_parent(told: SimpleQueue[bytes]) -> None:
    """The parent's lines. One that is gone, or that has given up, has closed standard input."""
    pending = b""
    # Not `sys.stdin`: its lock would be held while the interpreter ends.
    while received := os.read(0, 65536):
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            told.put(line)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_LEAVE_SECONDS)
    os._exit(1)


def _leave(number: int, frame: object) -> NoReturn:
    # Through the `finally` of a download, which removes its half.
    raise SystemExit(1)


if __name__ == "__main__":
    main()
