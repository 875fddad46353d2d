"""The process that serves: builds and runs the server from the settings, and returns the error that ended it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from ..classifier import Classifier
from ..interpreter import leave, spare_requests_from_collection
from ..pool import LoadedModel, ModelFacts
from ..progress import Reporter
from ..settings import Settings
from .app import Hooks, Parts, create_app
from .connection_limits import ConnectionLimits
from .crowding import most_connections
from .lifecycle import Server
from .listening import BACKLOG, address_of, listen
from .open_files import OpenFiles
from .protocol import HttpProtocol
from .uvicorn_internals import Config

logger = logging.getLogger(__name__)

_LAST_RESORT_SECONDS = 10.0
# How long a process whose device is lost may take to end.
_LAST_SECONDS = 15.0


def serve(settings: Settings, reporter: Reporter, on_ready: Callable[[ModelFacts, str], None]) -> Exception | None:
    """Serve in this single process until told to stop; returns the error that ended it, or None after a signal.

    `on_ready` gets the model and the service's address. Raises `SettingError` if the address cannot be used.
    """
    listener = listen(settings)
    address = address_of(settings, listener)
    failures: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True
        # A device that hangs may also hang the shutdown.
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
    """The app's server, not started yet."""
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
    config = Config(
        app,
        # uvicorn only calls it, whatever the annotation says.
        http=partial(HttpProtocol, limits=limits),  # type: ignore[arg-type]
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        proxy_headers=True,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        # uvicorn annotates an int, but only waits for it: a fraction works.
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        # A fallback: before that, `Server` ends open requests in order.
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
