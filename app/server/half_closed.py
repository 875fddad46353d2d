"""Clients that have ended their side of a connection while their request is being answered.

A client that only sends no more, as `nc -N` does, waits for its answer; a client that has left ends its side in the
same way. Sending tells them apart: the system reports an error for a client that has left. An interim answer (100
Continue) is sent for that; every HTTP/1.1 client passes over it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
# Most answers come before the first look, and then nothing is sent before them.
_FIRST_LOOK_SECONDS = 0.025
_LOOK_SECONDS = 0.05


class HalfClosed:
    """Watches such a connection until it is answered, and cuts it where the client has left."""

    def __init__(self, transport: asyncio.Transport, may_send: Callable[[], bool]) -> None:
        """`may_send` says whether an interim answer is in order now: none of the answer has been written."""
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
    """The error that waits at a socket which nobody reads."""
    connection: socket.socket = transport.get_extra_info("socket")
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
