"""Log lines as JSON objects or as text, one line each, written without waiting for the reader.

    JSON      {"level": "INFO", "logger": "app.process", "message": "Listening …", "time": "2026-01-31T12:00:00+00:00"}
    text      2026-01-31T12:00:00.123Z INFO    Listening …

What a client sent may be in a line and cannot end it: JSON escapes it, and in text every character that is no printable
one is written as an escape.
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
# How long a line may wait for others to be written with, and how many these may be.
_GATHER_SECONDS = 0.02
_MOST_AT_ONCE = 100


def set_up_logging(level: str, log_format: LogFormat = "text", *, in_background: bool = False) -> None:
    """Log to stderr from now on.

    With `in_background` a thread of its own writes the lines, so that a full disk or a reader that has stopped holds up
    nobody: lines that find no room are dropped and counted.
    """
    # No line says them, and to find the caller is half of what a record costs (the standard library's logging how-to).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stream = _Stream(sys.stderr)
    stream.setFormatter(_json_formatter() if log_format == "json" else TextFormatter())
    handler: logging.Handler = BackgroundHandler(stream) if in_background else stream
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each request of the download's HTTP client is no news, and uvicorn says twice what `serve` says once.
    for name in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def share_output(lock: int) -> None:
    """From now on, write each line while holding `lock`: other processes write to the same place.

    `lock` is the descriptor of a file that they all have. The kernel keeps lines of up to 4 KB apart by itself, and
    those only in pipes.
    """
    for handler in logging.getLogger().handlers:
        stream = handler.target if isinstance(handler, BackgroundHandler) else handler
        if isinstance(stream, _Stream):
            stream.lock_descriptor = lock


def dropped_lines() -> int:
    """How many lines could not be written since the start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, BackgroundHandler))


def _json_formatter() -> logging.Formatter:
    names = {"levelname": "level", "name": "logger", "exc_info": "traceback"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp="time")


class TextFormatter(logging.Formatter):
    """A line for a person. Of an exception the trace follows, each of its lines indented."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record.created)} {record.levelname:<7} {printable(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {printable(each)}" for each in trace.splitlines())
        return line


def printable(text: str) -> str:
    """`text` with every character that could move a terminal's cursor, or look like another line, as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _timestamp(created: float) -> str:
    """UTC, to the millisecond, as RFC 3339 writes it."""
    seconds, milliseconds = divmod(round(created * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


class _Stream(logging.StreamHandler[TextIO]):
    """Writes, and counts what it could not write: stderr may be closed, or on a disk that is full."""

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
        """None where the record's own arguments cannot be formatted."""
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
    """What writes lines, and counts those that it could not."""

    failed: int

    def emit_all(self, records: Sequence[logging.LogRecord]) -> None: ...


class BackgroundHandler(logging.Handler):
    """Hands records to a thread that writes them with `target`; drops and counts them where too many wait.

    Lines of a few milliseconds are written together: to wake the thread for each, which then competes with decoding for
    the interpreter's lock, is several times what writing it costs. A warning, or what is worse, waits for nothing.
    """

    def __init__(self, target: Target, most_waiting: int = _MOST_WAITING) -> None:
        super().__init__()
        self.target = target
        self._full = 0
        self._most_waiting = most_waiting
        # The simple one: the other, which has a bound of its own, takes a lock and wakes a condition for each line.
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
        """Write what waits, for as long as a second; a reader that has stopped must not hold the process."""
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
