"""The process that serves: a uvicorn server with this service's signals, protocol and exit status."""

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
from functools import partial
from types import FrameType

import uvicorn

from .api import SPARE_CONNECTIONS, ConnectionLimits, HttpProtocol, OpenFiles
from .classifier import Classifier
from .interpreter import leave, spare_requests_from_collection, take_stop_signals
from .listening import BACKLOG, address_of, admit_no_more, listen
from .loading import LoadedModel, ModelFacts
from .progress import Reporter
from .resources import open_file_limit
from .server import Hooks, Parts, create_app
from .settings import Settings

logger = logging.getLogger(__name__)

# How long a handshake that has begun may take to end, and a connection that was accepted last to send its request.
_HANDSHAKE_SECONDS, _ARRIVAL_SECONDS = 0.25, 1.0
_LOOK_SECONDS = 0.01
_FEWEST_CONNECTIONS, _MOST_CONNECTIONS, _OTHER_FILES = 16, 10_000, 256
_CLOSE = (b"connection", b"close")
# After the grace period: how long the last answers may take to arrive. An upload's rest is read for two seconds.
_LAST_WORDS_SECONDS = 2.5
_LAST_RESORT_SECONDS = 10.0
# uvicorn ticks ten times a second.
_TICKS_PER_CHECK = 10
# How long a process whose device is lost may take to end.
_LAST_SECONDS = 15.0


def serve(settings: Settings, reporter: Reporter, on_ready: Callable[[ModelFacts, str], None]) -> Exception | None:
    """Serve in this process alone, until told to stop; returns the error that ended it, or None after a signal.

    `on_ready` is given the model and the service's address. Raises `SettingError` where the address cannot be had.
    """
    listener = listen(settings)
    address = address_of(settings, listener)
    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True
        # A device that hangs may hang what would stop it too.
        guard = threading.Timer(_LAST_SECONDS, leave, [1])
        guard.daemon = True
        guard.start()

    def on_model_ready(model: LoadedModel) -> None:
        spare_requests_from_collection()
        on_ready(model, address)

    server = build_server(settings, Hooks(reporter, on_model_ready, on_failure))
    logger.info("Listening on %s; /healthz answers, /readyz will once the model is loaded.", address)
    server.run(sockets=[listener])
    return failures[0] if failures else None


def build_server(settings: Settings, hooks: Hooks, parts: Parts | None = None) -> Server:
    """A server of the app, not started yet."""
    app = create_app(settings, hooks, parts)
    open_files = OpenFiles()
    limits = ConnectionLimits(
        header_seconds=settings.header_timeout_seconds,
        header_bytes=settings.max_header_bytes,
        header_count=settings.max_headers,
        response_seconds=settings.response_timeout_seconds,
        connections=most_connections(settings),
        on_refusal=app.state.access_log.refused,
        early_refusals=app.state.early_refusals,
        open_files=open_files,
    )
    config = uvicorn.Config(
        app,
        # uvicorn calls it and asks no more of it.
        http=partial(HttpProtocol, limits=limits),  # type: ignore[arg-type]
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        proxy_headers=True,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        # A fraction will do: it is only waited for.
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        # The last resort: `Server` ends what is open in order, and before.
        timeout_graceful_shutdown=round(settings.shutdown_grace_seconds + _LAST_RESORT_SECONDS),
        backlog=BACKLOG,
    )

    def on_stop() -> bool:
        # Readiness falls with the signal, before anything is closed.
        classifier: Classifier = app.state.classifier
        was_ready = classifier.state().ready
        classifier.draining = True
        return was_ready

    return Server(
        config,
        settings.shutdown_linger_seconds,
        settings.shutdown_grace_seconds,
        on_stop,
        app.state.drain.end,
        are_files_out=open_files.are_out,
    )


def most_connections(settings: Settings) -> int:
    """How many connections may be open at once, where the setting does not say: most of the files that may be open."""
    if settings.max_connections != "auto":
        return settings.max_connections
    files = open_file_limit()
    # For listening sockets, decoders, files that are read, and connections that are being refused.
    others = min(_OTHER_FILES, files // 4) + SPARE_CONNECTIONS
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, files - others))


class Server(uvicorn.Server):
    """uvicorn's server with this service's way to stop.

    SIGTERM: readiness falls at once, and for `linger_seconds` more requests are taken while whoever routes them finds
    out; each answer then closes its connection. After that, what was accepted is answered for `grace_seconds`, and what
    is open then is answered 503; the exit status is 0. Ctrl-C, or a second SIGTERM, skips the linger; Ctrl-C while it
    stops ends the grace period. (uvicorn itself closes its listeners at once and raises the signal again when it is
    done.)
    """

    def __init__(
        self,
        config: uvicorn.Config,
        linger_seconds: float,
        grace_seconds: float,
        on_stop: Callable[[], bool],
        on_grace_over: Callable[[], int],
        are_files_out: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_stop` is told of each signal, and says whether requests were being served until it. `on_grace_over` ends
        the requests that are open, and says how many. `are_files_out` says whether nothing can be accepted.
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
            # uvicorn renews the second from the first once a second.
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
        # A server that closes takes its socket along: these are other names of the same ones.
        await super().startup([listener.dup() for listener in self._listeners])

    async def _accept_while_files_last(self) -> None:
        """Without a file for a new connection libuv tries again at once, for ever, and takes a whole core for it: then
        connections wait with the kernel.
        """
        are_out = self._are_files_out()
        if are_out and self.servers:
            for server in self.servers:
                server.close()
            self.servers.clear()
        elif not are_out and not self.servers and not self.should_exit:
            with suppress(OSError):  # gone again: at the next tick
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
        """Accept no more, and let the requests of those that have connected arrive."""
        # First only the door: uvicorn closes connections that have sent no request yet in the same breath, and with
        # them those whose request is on its way. The kernel resets what it still holds for a listener that closes.
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
        # Connections have no event that says all of them have asked.
        while self._awaits_requests() and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    async def _end_grace(self) -> None:
        """Wait for the end of the grace period; answer what is open then, and cut what does not take its answer."""
        # A signal may end it sooner, and uvicorn's connections have no event that says they are gone.
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
    """The connections that wait at a listener for being accepted."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # nobody is left (EAGAIN), or who was has gone
            return
        connection.setblocking(False)
        yield connection
