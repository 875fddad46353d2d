"""uvicorn's server with this service's handling of signals, shutdown and new connections."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ..interpreter import take_stop_signals
from .listening import BACKLOG, admit_no_more
from .protocol import HttpProtocol
from .uvicorn_internals import Config, UvicornServer

logger = logging.getLogger(__name__)

# How long a handshake that has begun may take, and how long the connection accepted last may take to send its request.
_HANDSHAKE_SECONDS, _ARRIVAL_SECONDS = 0.25, 1.0
_LOOK_SECONDS = 0.01
_CLOSE = (b"connection", b"close")
# After the grace period: the time for the last answers to arrive. The rest of an upload is read for two seconds.
_LAST_WORDS_SECONDS = 2.5
# uvicorn ticks ten times a second.
_TICKS_PER_CHECK = 10


class Server(UvicornServer):
    """uvicorn's server with this service's shutdown.

    SIGTERM: readiness falls at once, and requests are accepted for `linger_seconds` more, until load balancers have
    noticed; each answer then closes its connection. After that, accepted requests are answered for `grace_seconds`, and
    requests still open then get 503; the exit status is 0. Ctrl-C, or a second SIGTERM, skips the linger; Ctrl-C during
    the shutdown ends the grace period. (uvicorn itself closes its listeners at once and raises the signal again at the
    end.)
    """

    def __init__(
        self,
        config: Config,
        linger_seconds: float,
        grace_seconds: float,
        on_stop: Callable[[], bool],
        on_grace_over: Callable[[], int],
        are_files_out: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_stop` is called at each signal, and returns whether requests were being served until then.

        `on_grace_over` ends the open requests, and returns their number. `are_files_out` returns whether no file
        descriptor is left for a new connection.
        """
        super().__init__(config)
        self._linger_seconds = linger_seconds
        self._grace_seconds = grace_seconds
        self._on_stop = on_stop
        self._on_grace_over = on_grace_over
        self._are_files_out = are_files_out
        self._listeners: list[socket.socket] = []
        self._exit_at: float | None = None
        self._grace_ends_at = math.inf

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        take_stop_signals()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        was_serving = self._on_stop()
        if sig == signal.SIGTERM and was_serving and self._exit_at is None:
            self._exit_at = time.monotonic() + self._linger_seconds
            # uvicorn rebuilds the default headers from the encoded ones once a second.
            self.config.encoded_headers.append(_CLOSE)
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        elif self.should_exit and sig == signal.SIGINT and time.monotonic() < self._grace_ends_at:
            self._grace_ends_at = time.monotonic()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        if counter % _TICKS_PER_CHECK == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.check_stall(now)
        await self._accept_while_files_last()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners = list(sockets or [])
        for listener in self._listeners:
            listener.setblocking(False)
        # A server that closes also closes its socket: these are duplicates of the same sockets.
        await super().startup([listener.dup() for listener in self._listeners])

    async def _accept_while_files_last(self) -> None:
        """Close the servers while no file descriptor is left; new connections then wait in the kernel.

        libuv would retry the accept at once, for ever, and use a whole core for it.
        """
        are_out = self._are_files_out()
        if are_out and self.servers:
            for server in self.servers:
                server.close()
            self.servers.clear()
        elif not are_out and not self.servers and not self.should_exit:
            with suppress(OSError):  # no descriptor again: retry at the next tick
                for listener in self._listeners:
                    server = await asyncio.get_running_loop().create_server(
                        self._new_protocol, sock=listener.dup(), backlog=BACKLOG
                    )
                    self.servers.append(server)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._grace_ends_at = min(self._grace_ends_at, time.monotonic() + self._grace_seconds)
        ending = asyncio.create_task(self._end_grace())
        try:
            await self._close(sockets or [])
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _close(self, sockets: list[socket.socket]) -> None:
        """Accept no new connections, and wait for the requests of open ones."""
        # The listeners are closed first: uvicorn closes connections without a request at the same time as them, even if
        # the request is on its way. The kernel resets connections that still wait at a listener when it closes.
        for listener in sockets:
            admit_no_more(listener)
        await asyncio.sleep(_HANDSHAKE_SECONDS)
        knocking = [connection for listener in sockets for connection in _accept_all(listener)]
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in knocking:
            await loop.connect_accepted_socket(self._new_protocol, connection)
        give_up_at = time.monotonic() + _ARRIVAL_SECONDS
        # Connections have no event for "all have sent a request".
        while self._awaits_requests() and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    async def _end_grace(self) -> None:
        """At the end of the grace period, answer the open requests; then cut clients that read no answer."""
        # A signal may end it sooner, and uvicorn's connections have no event for their end.
        while time.monotonic() < self._grace_ends_at:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        if ended := self._on_grace_over():
            logger.warning(
                "Shutting down: %d requests were not answered within the grace period (RESNET_SHUTDOWN_GRACE_SECONDS, "
                "%g s) and get 503.",
                ended,
                self._grace_seconds,
            )
        connections = self.server_state.connections
        give_up_at = time.monotonic() + _LAST_WORDS_SECONDS
        while connections and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        for connection in list(connections):
            if isinstance(connection, HttpProtocol):
                connection.transport.abort()

    def _awaits_requests(self) -> bool:
        connections = list(self.server_state.connections)
        return any(isinstance(each, HttpProtocol) and each.awaits_head for each in connections)

    def _new_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(
            config=self.config,  # type: ignore[call-arg]
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        return protocol


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait to be accepted at a listener."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # none is left (EAGAIN), or the last one has closed
            return
        connection.setblocking(False)
        yield connection
