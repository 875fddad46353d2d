"""Clients that have ended their side of a connection while their request is being answered.

A client that only ends its sending side, as `nc -N` does, waits for its answer; a client that has left ends its side in
the same way. Sending data tells them apart: the system then reports an error for a client that has left. An interim
answer (100 Continue) is sent for this purpose; every HTTP/1.1 client ignores it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
# Most answers are sent before the first check, and then no interim answer precedes them.
_FIRST_LOOK_SECONDS = 0.025
_LOOK_SECONDS = 0.05


class HalfClosed:
    """Watches a half-closed connection until it is answered, and aborts it if the client has left."""

    def __init__(self, transport: asyncio.Transport, may_send: Callable[[], bool]) -> None:
        """`may_send`: whether an interim answer may be sent now, because no part of the answer has been written."""
        self._transport = transport
        self._may_send = may_send
        self._has_sent = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_FIRST_LOOK_SECONDS, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._transport.is_closing():
            return
        if not self._has_sent and self._may_send():
            self._has_sent = True
            self._transport.write(_INTERIM)
        if _error_of(self._transport):
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)


def _error_of(transport: asyncio.Transport) -> int:
    """The pending error of the socket, from which no data is read."""
    connection: socket.socket = transport.get_extra_info("socket")
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
