"""One request that was refused by its headers: its turn, its answer, and the rest of its body."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from .early_refusals import EarlyRefusal, EarlyRefusals
from .uvicorn_internals import ServerState

# How long the rest of a small body may take after the answer, before the connection is closed.
_REST_SECONDS = 2.0


class Connection(Protocol):
    """The connection on which a request is refused."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    client: tuple[str, int] | None
    root_path: str
    server_state: ServerState

    def end_early(self, *, closes: bool) -> None:
        """The request is over. `closes`: the rest of its body is not read, and the connection closes."""
        ...


class RefusedRequest:
    """Sends the answer when its turn comes, and reads the rest of a small body."""

    def __init__(
        self, connection: Connection, refusals: EarlyRefusals, refusal: EarlyRefusal, *, keeps_connection: bool
    ) -> None:
        self._connection = connection
        self._refusals = refusals
        self._refusal = refusal
        self._keeps_connection = keeps_connection and refusal.keeps_connection
        self._began = time.monotonic()
        self._is_sent = False
        self.has_ended = False
        """Whether its whole body has been received."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Send the answer when its turn has come, which may be now."""
        self._refusals.await_turn(self, self._connection.loop)

    def send(self, *, closes: bool = False) -> None:
        """Send the answer now. `closes`: the connection serves no further request."""
        if self._is_sent:
            if closes:
                self._connection.transport.close()
            return
        self._is_sent = True
        self._stop_timer()
        connection = self._connection
        if connection.transport.is_closing():
            return
        headers = connection.server_state.default_headers
        closes = closes or not self._keeps_connection or (b"connection", b"close") in headers
        self._keeps_connection = not closes
        connection.transport.write(self._refusals.render(self._refusal, headers, connection.root_path, closes=closes))
        self._refusals.sent(self._refusal, connection.client, time.monotonic() - self._began)
        if closes or self.has_ended:
            self._end()
        else:
            self._timer = connection.loop.call_later(_REST_SECONDS, connection.transport.close)

    def body_ended(self) -> None:
        """The whole body has been received."""
        self.has_ended = True
        if self._is_sent:
            self._end()

    def connection_lost(self) -> None:
        """The client has left."""
        self._stop_timer()
        if not self._is_sent:
            self._is_sent = True
            self._refusals.gone(self._refusal)

    def _end(self) -> None:
        self._stop_timer()
        self._connection.end_early(closes=not self._keeps_connection)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
