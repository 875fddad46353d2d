"""The process that serves: a uvicorn server with this service's signals, protocol and exit status."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from .api import HttpProtocol
from .errors import SettingError
from .loading import LoadedModel, Reporter
from .server import Hooks, create_app
from .settings import Settings

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30


def serve(settings: Settings, reporter: Reporter, on_ready: Callable[[LoadedModel, str], None]) -> Exception | None:
    """Serve until told to stop; returns the error that ended it, or None after SIGTERM or Ctrl-C.

    `on_ready` is given the model and the service's address. Raises `SettingError` where the address cannot be had.
    """
    listener = listen(settings)
    address = address_of(settings, listener)
    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = build_server(settings, Hooks(reporter, lambda model: on_ready(model, address), on_failure))
    logger.info("Listening on %s; /healthz answers, /readyz will once the model is loaded.", address)
    server.run(sockets=[listener])
    return failures[0] if failures else None


def build_server(settings: Settings, hooks: Hooks) -> Server:
    """A server of the app, not started yet."""
    app = create_app(settings, hooks)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=settings.log_level in ("debug", "info"),
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_seconds)),
        backlog=_BACKLOG,
    )

    def on_stop() -> None:
        # Readiness falls with the signal, before anything is closed.
        if (classifier := getattr(app.state, "classifier", None)) is not None:
            classifier.draining = True

    return Server(config, on_stop)


class Server(uvicorn.Server):
    """uvicorn's server, except that a signal it obeyed is not raised again: a clean stop exits 0."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)


def listen(settings: Settings) -> socket.socket:
    """The listening socket, bound before anything is loaded: a taken port is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingError(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. Choose another address with "
            f"--host and --port (RESNET_HOST, RESNET_PORT), or stop what uses this one."
        ) from None


def address_of(settings: Settings, listener: socket.socket) -> str:
    """An address that a person on this machine can paste."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"
