"""A two-way channel between processes: JSON messages with descriptors beside them, over a socket pair.

Each message is framed as described in `framing.py`. The end of the channel shows that the peer has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .framing import HEAD, pack, parse

MOST_BYTES = 1 << 24
_MOST_DESCRIPTORS = 4
_READ_BYTES = 1 << 16
_PATIENCE_SECONDS = 5.0


@dataclass(slots=True)
class Message:
    kind: str
    fields: dict[str, Any]
    descriptors: list[int] = field(default_factory=list)
    """To be closed by the receiver."""


class Channel:
    """One end."""

    def __init__(self, connection: socket.socket, patience_seconds: float | None = _PATIENCE_SECONDS) -> None:
        """`patience_seconds` is how long `send` and `receive` wait for the peer; None means for ever."""
        self._connection = connection
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: Callable[[Message], None] = lambda message: None
        self._on_gone: Callable[[], None] = lambda: None
        connection.settimeout(patience_seconds)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """This process's end, and the other end for a child. Raises `OSError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours), theirs

    @classmethod
    def inherited(cls, descriptor: str, patience_seconds: float | None = _PATIENCE_SECONDS) -> Channel:
        """The child's end, from the descriptor on its command line."""
        os.set_inheritable(int(descriptor), False)
        return cls(socket.socket(fileno=int(descriptor)), patience_seconds)

    def send(self, kind: str, descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Send a message with copies of the descriptors. Raises `OSError` if the peer does not read."""
        data = pack({"kind": kind, **fields}, len(descriptors))
        sent = socket.send_fds(self._connection, [data], list(descriptors))
        try:
            self._connection.sendall(memoryview(data)[sent:])
        except OSError:
            # After an incomplete message no other can follow.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
            raise

    def tell(self, kind: str, **fields: Any) -> None:
        """`send` for a message that need not arrive."""
        with contextlib.suppress(OSError):
            self.send(kind, **fields)

    def receive(self) -> Message | None:
        """The next message; None if the peer has ended. Raises `OSError`, also if no message arrives in time."""
        while (message := self._next()) is None:
            if not self._read():
                return None
        return message

    def is_readable(self, within_seconds: float) -> bool:
        """Whether a message, or the end of the channel, arrives within `within_seconds`."""
        return self._has_whole() or bool(select.select([self._connection], [], [], within_seconds)[0])

    def listen(self, on_message: Callable[[Message], None], on_gone: Callable[[], None] = lambda: None) -> None:
        """Call `on_message` on the running event loop for each message, and `on_gone` once when the peer has ended."""
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_gone = on_message, on_gone
        self._loop.add_reader(self._connection.fileno(), self._on_readable)
        # An earlier `receive` may have read more messages than it returned.
        self._loop.call_soon(self._deliver)

    def stop_listening(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._connection.fileno())
            self._loop = None

    def close(self) -> None:
        """Close the channel; messages that have arrived are still delivered. Further calls do nothing."""
        if self._connection.fileno() < 0:
            return
        self.stop_listening()
        self._connection.settimeout(0)
        with contextlib.suppress(OSError):
            while (message := self.receive()) is not None:
                self._on_message(message)
        self._connection.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _on_readable(self) -> None:
        try:
            is_open = self._read()
            self._deliver()
        except OSError:
            is_open = False
        if not is_open and self._loop is not None:
            self.stop_listening()
            self._on_gone()

    def _deliver(self) -> None:
        while self._loop is not None and (message := self._next()) is not None:
            self._on_message(message)

    def _read(self) -> bool:
        """Read available data, at least one byte; False at the end of the channel."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._connection, _READ_BYTES, _MOST_DESCRIPTORS)
        except ConnectionError:  # the peer ended without reading all of its messages
            return False
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # recv_fds drops the flag for it
        self._received += data
        self._descriptors += descriptors
        if flags & socket.MSG_CTRUNC:
            raise OSError("A message between processes lost its descriptors.")
        return bool(data)

    def _has_whole(self) -> bool:
        if len(self._received) < HEAD.size:
            return False
        length, _ = HEAD.unpack_from(self._received)
        return len(self._received) >= HEAD.size + int(length)

    def _next(self) -> Message | None:
        """The next complete message, if there is one. Raises `OSError` for an invalid one."""
        if len(self._received) >= HEAD.size and HEAD.unpack_from(self._received)[0] > MOST_BYTES:
            raise OSError("A message between processes is too long.")
        if not self._has_whole():
            return None
        length, count = HEAD.unpack_from(self._received)
        end = HEAD.size + length
        try:
            fields = parse(bytes(self._received[HEAD.size : end]))
            message = Message(fields.pop("kind"), fields, [self._descriptors.popleft() for _ in range(count)])
        except (ValueError, KeyError, IndexError):
            raise OSError("A message between processes is garbled.") from None
        del self._received[:end]
        return message
