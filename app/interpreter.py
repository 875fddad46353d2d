"""The Python interpreter of a process that serves: its garbage collector, how it is told to stop, and how it ends."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn

# New objects before the youngest are gone through, and how many such rounds before the middle and the oldest are.
_COLLECTION_THRESHOLDS = (50_000, 20, 100)
_FLUSH_SECONDS = 3.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def spare_requests_from_collection() -> None:
    """Keep Python's cyclic garbage collector from holding the event loop.

    It stops everything while it goes through what lives: some 30 ms for what the start has made, or for 500 requests
    that wait for their bodies, as often as once a second; the slowest of the good requests beside those took twice as
    long. So what the start has made is left out, and what has lived for long is gone through rarely. Nothing large may
    wait for it: whoever holds a body or pixels drops them, also where an exception's frames hold them too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)


def open_standard_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr an empty one.

    Otherwise the next file or socket that it opens becomes its standard output, and what a library prints is sent
    there.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            empty = os.open(os.devnull, os.O_RDWR)
            if empty != descriptor:
                os.dup2(empty, descriptor)
                os.close(empty)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def hold_stop_signals() -> None:
    """Have Ctrl-C and SIGTERM wait until somebody takes them: nothing that is begun or put away now is cut short.

    Threads that are started meanwhile never take them. Child processes do: each unblocks them at its start.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def take_stop_signals() -> None:
    """This thread has its handlers, and meets at once what has waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def end_at_stop_signals() -> None:
    """The same for a command that is no server: either signal ends it, also the first process of a container, to which
    the kernel gives no signal without a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    take_stop_signals()


def _end(number: int, frame: object) -> NoReturn:
    # As a shell tells of a process that a signal has ended.
    raise SystemExit(128 + number)


def leave(status: int) -> NoReturn:
    """End the process with `status` without joining threads: one that is stuck, or still loads, must not hold it."""
    # Nor must a reader of the log that has stopped.
    last_words = threading.Thread(target=_flush, name="flush", daemon=True)
    last_words.start()
    last_words.join(_FLUSH_SECONDS)
    os._exit(status)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        # Closed from the start it is None; on a full disk it cannot be flushed.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
