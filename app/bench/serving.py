"""The server under measurement: one that is started for the run, or one at a user's URL."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from ..errors import SettingError, StartError
from ..processes import child_environment
from ..processes.children import Child
from ..settings import ENV_PREFIX, ModelSettings, Settings
from . import children
from .target import Target

T = TypeVar("T")
_POLL_SECONDS = 0.1
_STOP_SECONDS = 30.0
_FIELDS = ("state", "ready", "version")


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready."""

    target: Target
    health: dict[str, Any]
    """The answer of /readyz: model, backend, device, version."""
    pid: int | None = None
    """None for a server that the run did not start."""
    ready_seconds: float | None = None
    """From its start to the first 200 of /readyz."""


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of a child that runs this service with exactly these settings."""
    own = {f"{ENV_PREFIX}{name.upper()}": value for name, value in given(settings).items()}
    return child_environment(children.NEEDS, own)


def given(settings: Settings) -> dict[str, str]:
    """The settings that were set by flag or environment, as text."""
    values = {
        name: getattr(settings, name) for name in type(settings).model_fields if name in settings.model_fields_set
    }
    return {
        name: ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }


def null_settings(settings: Settings) -> Settings:
    """The same service without a model: the null backend needs no model settings."""
    kept = {
        name: getattr(settings, name)
        for name in type(settings).model_fields
        if name in settings.model_fields_set and name not in ModelSettings.model_fields
    }
    return type(settings).model_construct(**kept, backend="null", _fields_set={*kept, "backend"})


class ServerProcess:
    """A server as a child process, with its log in a file."""

    def __init__(self, child: Child, log: Path) -> None:
        self.began = time.monotonic()
        self.pid = child.id
        self._child = child
        self._log = log
        self._ended = asyncio.create_task(child.ended())

    async def ready(self, answer: Coroutine[Any, Any, T]) -> T:
        """The result of `answer`. Raises `StartError`, with the log's last lines, if it fails or the server ends."""
        task = asyncio.create_task(answer)
        try:
            await asyncio.wait((task, self._ended), return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                raise StartError(f"The server ended with status {self._ended.result()}.{self._last_words}")
            try:
                return await task
            except StartError as error:
                raise StartError(f"{error}{self._last_words}") from None
        finally:
            task.cancel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that is cancelled, with a `StartError`, if the server ends during it."""
        task = asyncio.current_task()
        assert task is not None
        is_inside, is_stopped = True, False

        def stop(_: asyncio.Task[int]) -> None:
            nonlocal is_stopped
            if is_inside:
                is_stopped = True
                task.cancel()

        self._ended.add_done_callback(stop)
        try:
            yield
        except (asyncio.CancelledError, StartError):
            # The server's end shows as a cancellation, or as a missing answer. Any other cancellation is passed on.
            has_ended = self._ended.done()
            if not has_ended or (is_stopped and task.uncancel() > 0) or (not is_stopped and task.cancelling()):
                raise
        finally:
            is_inside = False
        if self._ended.done():
            raise StartError(f"The server ended with status {self._ended.result()} during the run.{self._last_words}")

    async def end(self, by: signal.Signals) -> None:
        """Signal the server's processes, as Ctrl-C in a terminal does; kill those that do not end in time."""
        self._child.send_signal(by)
        await asyncio.wait((self._ended,), timeout=_STOP_SECONDS)
        # Other servers may leave children behind.
        self._child.kill_group()
        await self._ended

    @property
    def _last_words(self) -> str:
        return children.last_words(self._log)


@asynccontextmanager
async def server_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    folder: Path | None = None,
    # Ctrl-C's signal ends our service at once: there is no load balancer to wait for.
    ends_by: signal.Signals = signal.SIGINT,
) -> AsyncIterator[ServerProcess]:
    """Run a server in `folder` until the block ends."""
    with log.open("wb") as output:
        child = Child(command, environment, stdout=output, stderr=output, folder=folder)
    server = ServerProcess(child, log)
    try:
        yield server
    finally:
        await server.end(ends_by)


@asynccontextmanager
async def started(settings: Settings, name: str, folder: Path, wait_seconds: float) -> AsyncIterator[Serving]:
    """`resnet-serve serve` as a child process, ready on a free port of this machine; it ends with the block.

    Raises `StartError` with the log's last lines if it ends, at its start or later, or is not ready in time.
    """
    target = Target("http", "127.0.0.1", free_port())
    own = {f"{ENV_PREFIX}HOST": target.host, f"{ENV_PREFIX}PORT": str(target.port)}
    command, environment = children.command("", "serve"), environment_of(settings) | own
    async with server_process(command, environment, folder / f"{name}.log") as server:
        health = await server.ready(_ready(target, wait_seconds, is_starting=True))
        with server.held():
            yield Serving(target, health, server.pid, time.monotonic() - server.began)


async def reached(target: Target, wait_seconds: float) -> Serving:
    """The service at a user's URL, once it is ready. No redirect is followed, and no proxy is used.

    Raises `StartError`: no server listens there, it is not this service, or it is not ready in time.
    """
    return Serving(target, await _ready(target, wait_seconds, is_starting=False))


async def _ready(target: Target, wait_seconds: float, *, is_starting: bool) -> dict[str, Any]:
    give_up_at = time.monotonic() + wait_seconds
    # The certificates that the load's own connections trust, not httpx's.
    verify = target.tls() or True
    async with httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=5.0, verify=verify) as client:
        while True:
            said = "it does not answer"
            try:
                response = await client.get(f"{target.url}/readyz")
            except httpx.TimeoutException:
                pass
            except (httpx.HTTPError, OSError) as error:
                if not is_starting:
                    raise SettingError(
                        f"{target.url} cannot be reached: {error or type(error).__name__}. Is the service running "
                        "there? `resnet-serve serve` starts one; without --url, bench starts its own."
                    ) from None
            else:
                document = _document(target, response)
                if response.status_code == 200:
                    return document
                said = str(document.get("detail") or document["state"])
            if time.monotonic() >= give_up_at:
                raise SettingError(f"{target.url} is not ready after {wait_seconds:g} s: {said}")
            await asyncio.sleep(_POLL_SECONDS)


def _document(target: Target, response: httpx.Response) -> dict[str, Any]:
    """The answer of /readyz. Raises `SettingError` for that of another service."""
    if response.is_redirect:
        raise SettingError(
            f"{target.url} answers with a redirect to {response.headers.get('location')!r}, which is not followed. "
            "If that is the service, give its address."
        )
    try:
        document = response.json()
    except ValueError:
        document = None
    known = isinstance(document, dict) and (
        all(name in document for name in _FIELDS) if response.status_code == 200 else "state" in document
    )
    if not known:
        raise SettingError(
            f"What answers at {target.url} is not resnet-serve: GET /readyz gave {response.status_code} and not its "
            "health. Give the address of the service itself, with the path prefix it has there."
        )
    assert isinstance(document, dict)
    return document


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
