"""The app on other ASGI servers than its own: each runs it in a thread, and is asked through httpx."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.pool import LoadedModel
from app.progress import LogReporter
from app.server.app import Hooks, create_app
from app.settings import Settings
from tests.running import START_SECONDS

Kind = Literal["uvicorn, httptools", "uvicorn, h11", "hypercorn", "test client", "httpx transport"]
ON_A_SOCKET: tuple[Kind, ...] = ("uvicorn, httptools", "uvicorn, h11", "hypercorn")
KINDS: tuple[Kind, ...] = (*ON_A_SOCKET, "test client", "httpx transport")


@dataclass
class Served:
    """The app, and how to ask it."""

    app: FastAPI
    request: Callable[..., httpx.Response]
    address: tuple[str, int] | None = None
    """Of the socket, where the server has one."""

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("POST", path, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("GET", path, **arguments)


@contextlib.contextmanager
def served_by(kind: Kind, settings: Settings) -> Iterator[Served]:
    """The app of `settings` on a server of this kind, ready, until the block ends."""
    loaded = threading.Event()
    failures: list[Exception] = []

    def on_ready(model: LoadedModel) -> None:
        loaded.set()

    def on_failure(error: Exception) -> None:
        failures.append(error)
        loaded.set()

    app = create_app(settings, Hooks(LogReporter(), on_ready, on_failure))
    with _SERVERS[kind](app) as served:
        assert loaded.wait(START_SECONDS)
        assert failures == []
        yield served


@contextlib.contextmanager
def _on_a_socket(app: FastAPI, serve: Callable[[socket.socket, threading.Event], Any]) -> Iterator[Served]:
    """`serve` is called in a thread; it returns after the event is set."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, args=(listener, stop), daemon=True)
    address = listener.getsockname()
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=30) as client:
            yield Served(app, client.request, address)
    finally:
        stop.set()
        thread.join(START_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


def _uvicorn(http: Literal["httptools", "h11"]) -> Callable[[FastAPI], contextlib.AbstractContextManager[Served]]:
    def on(app: FastAPI) -> contextlib.AbstractContextManager[Served]:
        server = uvicorn.Server(uvicorn.Config(app, http=http, ws="none", log_config=None, lifespan="on"))

        def serve(listener: socket.socket, stop: threading.Event) -> None:
            threading.Thread(target=lambda: (stop.wait(), setattr(server, "should_exit", True)), daemon=True).start()
            server.run(sockets=[listener])

        return _on_a_socket(app, serve)

    return on


def _hypercorn(app: FastAPI) -> contextlib.AbstractContextManager[Served]:
    from hypercorn.asyncio import serve as run
    from hypercorn.config import Config

    def serve(listener: socket.socket, stop: threading.Event) -> None:
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.errorlog = None
        config.graceful_timeout = 5

        async def until_stopped() -> None:
            await asyncio.to_thread(stop.wait)

        asyncio.run(run(app, config, shutdown_trigger=until_stopped))  # type: ignore[arg-type]

    return _on_a_socket(app, serve)


@contextlib.contextmanager
def _test_client(app: FastAPI) -> Iterator[Served]:
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield Served(app, client.request)


@contextlib.contextmanager
def _httpx_transport(app: FastAPI) -> Iterator[Served]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(START_SECONDS)

    lifespan = app.router.lifespan_context(app)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    wait_for(lifespan.__aenter__())
    try:
        yield Served(app, lambda *how, **arguments: wait_for(client.request(*how, **arguments)))
    finally:
        wait_for(client.aclose())
        wait_for(lifespan.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)
        loop.close()


_SERVERS: dict[Kind, Callable[[FastAPI], contextlib.AbstractContextManager[Served]]] = {
    "uvicorn, httptools": _uvicorn("httptools"),
    "uvicorn, h11": _uvicorn("h11"),
    "hypercorn": _hypercorn,
    "test client": _test_client,
    "httpx transport": _httpx_transport,
}
