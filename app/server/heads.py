"""Deadline and size limit of the request heads on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ..api.timeouts import timeout_of
from ..errors import HeadersTooLarge, HeadersTooSlow, ServiceError

# A chunked body may have as much framing as if each chunk had one byte, and a little more.
_FRAMING = 8


class HeadLimits(Protocol):
    """Limits of a head."""

    @property
    def header_seconds(self) -> float: ...
    @property
    def header_bytes(self) -> int: ...
    @property
    def header_count(self) -> int: ...


class HeadWatch:
    """Counts a head's bytes and runs its timer: from the connection, or from a later request's first byte.

    Each connection has its own timer, so that many slow clients are not cut at the same moment.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: HeadLimits,
        is_reading_paused: Callable[[], bool],
        on_late: Callable[[ServiceError | None], None],
    ) -> None:
        """`on_late` is called at the deadline: with the head's error, or with None if no byte has arrived."""
        self._loop = loop
        self._limits = limits
        self._is_reading_paused = is_reading_paused
        self._on_late = on_late
        self.timer: asyncio.TimerHandle | None = None
        self.in_message = self._in_head = False
        self._is_silent = True
        self._piece_at = 0.0
        self._head_bytes = 0
        self._message_bytes = 0
        self.body_bytes = 0
        """Of the current message. The parser's callback adds each chunk; a piece of data may have 40,000 of them."""

    @property
    def is_awaited(self) -> bool:
        """Whether a request is expected: the connection's first, or a later one whose first bytes have arrived."""
        return self.timer is not None

    def wait(self, share: float = 1.0) -> None:
        """Start the timer with a `share` of the deadline, unless it is running."""
        if self.timer is None:
            self.timer = self._loop.call_later(self._limits.header_seconds * share, self._is_late)

    def stop(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def piece_came(self) -> None:
        """A piece of data is about to be parsed."""
        self._is_silent = False
        self._in_head = self._in_head or not self.in_message

    def piece_parsed(self) -> None:
        """A piece of data has been parsed. Most heads arrive in one piece and need no timer."""
        if self._in_head:
            self.wait()
            self._piece_at = self._loop.time()

    def message_began(self) -> None:
        self.in_message = self._in_head = True
        self._message_bytes = self.body_bytes = self._head_bytes = 0

    def add(self, size: int, header_count: int) -> None:
        """Count a part of the head. Raises `HeadersTooLarge`."""
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes or header_count > self._limits.header_count:
            raise HeadersTooLarge()

    def head_ended(self) -> None:
        self._in_head = False
        self.stop()

    def message_ended(self) -> None:
        self.in_message = False

    def has_too_much_framing(self, piece_bytes: int) -> bool:
        """Whether this message, with `piece_bytes` more, has too many bytes outside its head and its body.

        Unfinished names and values, trailers and chunk extensions are reported by no callback.
        """
        self._message_bytes += piece_bytes
        return self._message_bytes - _FRAMING * self.body_bytes > self._limits.header_bytes + piece_bytes

    def _is_late(self) -> None:
        self.timer = None
        if self._is_reading_paused():
            # The rest may have arrived, but is not read while earlier requests are being answered.
            self.wait()
        elif self._is_silent:
            self._on_late(None)
        else:
            silent_seconds = self._loop.time() - self._piece_at
            self._on_late(timeout_of(silent_seconds, self._limits.header_seconds, HeadersTooSlow))
