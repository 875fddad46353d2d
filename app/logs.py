"""Log lines as JSON objects or as text, one line each, written without waiting for the reader.

    JSON  {"level": "INFO", "logger": "app.cli.serve", "message": "Listening …", "time": "2026-01-31T12:00:00+00:00"}
    text  2026-01-31T12:00:00.123Z INFO    Listening …

A line may contain text that a client sent, but that cannot end the line: JSON escapes it, and text lines escape every
character that is not printable.
"""

from __future__ import annotations

import fcntl
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, TextIO

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["json", "text"]
_MOST_WAITING = 10_000
_FLUSH_SECONDS = 1.0
# How long a line may wait to be written together with others, and how many lines are written at once.
_GATHER_SECONDS = 0.02
_MOST_AT_ONCE = 100


def set_up_logging(level: str, log_format: LogFormat = "text", *, in_background: bool = False) -> None:
    """Log to stderr from now on.

    With `in_background` a separate thread writes the lines, so that a full disk or a reader that has stopped blocks no
    other thread: lines that do not fit into the queue are dropped and counted.
    """
    # No line shows the caller, and finding it is half the cost of a record (the standard library's logging how-to).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = _Stream(sys.stderr)
    stream.setFormatter(_json_formatter() if log_format == "json" else TextFormatter())
    handler: logging.Handler = BackgroundHandler(stream) if in_background else stream
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # The download's HTTP client logs each request, and uvicorn repeats lines of `serve`.
    for name in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def share_output(lock: int) -> None:
    """From now on, write each line while holding `lock`, because other processes write to the same output.

    `lock` is the descriptor of a file that all of them have open. The kernel alone separates only lines of up to 4 KB,
    and only in pipes.
    """
    for handler in logging.getLogger().handlers:
        stream = handler.target if isinstance(handler, BackgroundHandler) else handler
        if isinstance(stream, _Stream):
            stream.lock_descriptor = lock


def dropped_lines() -> int:
    """The number of lines that could not be written since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, BackgroundHandler))


def _json_formatter() -> logging.Formatter:
    names = {"levelname": "level", "name": "logger", "exc_info": "traceback"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="time")


class TextFormatter(logging.Formatter):
    """A readable line; an exception's trace follows, with each of its lines indented."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record.created)} {record.levelname:<7} {printable(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {printable(each)}" for each in trace.splitlines())
        return line


def printable(text: str) -> str:
    """`text` with an escape for every character that could move a terminal's cursor or look like another line."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _timestamp(created: float) -> str:
    """UTC with milliseconds, as in RFC 3339."""
    seconds, milliseconds = divmod(round(created * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


class _Stream(logging.StreamHandler[TextIO]):
    """Writes lines, and counts failures: stderr may be closed, or on a full disk."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.failed = 0
        self.lock_descriptor: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.emit_all([record])

    def emit_all(self, records: Sequence[logging.LogRecord]) -> None:
        """Write several lines at once."""
        lines = [line for line in map(self._line, records) if line is not None]
        self.failed += len(records) - len(lines)
        try:
            with self._alone():
                self.stream.write("".join(lines))
                self.flush()
        except Exception:
            self.failed += len(lines)

    def _line(self, record: logging.LogRecord) -> str | None:
        """The formatted line; None if the record's own arguments cannot be formatted."""
        try:
            return self.format(record) + self.terminator
        except Exception:
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self.lock_descriptor is None:
            yield
            return
        fcntl.lockf(self.lock_descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.lock_descriptor, fcntl.LOCK_UN)


class Target(Protocol):
    """Writes lines, and counts those that it could not write."""

    failed: int

    def emit_all(self, records: Sequence[logging.LogRecord]) -> None: ...


class BackgroundHandler(logging.Handler):
    """Passes records to a thread that writes them with `target`; drops and counts them if too many wait.

    Lines of a few milliseconds are written together. Waking the thread for each line would cost several times as much
    as writing it, because the thread competes with decoding for the interpreter's lock. Warnings and errors do not
    wait.
    """

    def __init__(self, target: Target, most_waiting: int = _MOST_WAITING) -> None:
        super().__init__()
        self.target = target
        self._full = 0
        self._most_waiting = most_waiting
        # SimpleQueue, because a Queue with a bound takes a lock and notifies a condition for each line.
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._no_more = threading.Event()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        return self._full + self.target.failed

    def emit(self, record: logging.LogRecord) -> None:
        if self._records.qsize() < self._most_waiting:
            self._records.put(record)
        else:
            self._full += 1

    def close(self) -> None:
        """Write the waiting lines, for at most a second: a reader that has stopped must not block the process's end."""
        if self._thread.is_alive():
            self._no_more.set()
            self._records.put(None)
            self._thread.join(_FLUSH_SECONDS)
        super().close()

    def _write(self) -> None:
        is_open = True
        while is_open:
            records = [self._records.get()]
            if records[0] is not None and records[0].levelno < logging.WARNING:
                self._no_more.wait(_GATHER_SECONDS)
            records += [self._records.get() for _ in range(min(self._records.qsize(), _MOST_AT_ONCE))]
            lines = [record for record in records if record is not None]
            is_open = len(lines) == len(records)
            self.target.emit_all(lines)
