"""The server that is measured: one that is started for it, or one that a person's URL names."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ..errors import SettingError, StartError
from ..processes import child_environment
from ..processes.children import Child
from ..settings import ENV_PREFIX, ModelSettings, Settings
from . import children
from .target import Target

_POLL_SECONDS = 0.1
_STOP_SECONDS = 30.0
_FIELDS = ("state", "ready", "version")


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready."""

    target: Target
    health: dict[str, Any]
    """What its /readyz says: model, backend, device, version."""
    pid: int | None = None
    """Of one that was started here."""
    ready_seconds: float | None = None
    """From its start to the first 200 of /readyz."""


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment of a process of this service: what it needs of this one's, and exactly these settings."""
    own = {f"{ENV_PREFIX}{name.upper()}": value for name, value in given(settings).items()}
    return child_environment(children.NEEDS, own)


def given(settings: Settings) -> dict[str, str]:
    """The settings that somebody set, by flag or environment, as text that says the same."""
    values = {
        name: getattr(settings, name) for name in type(settings).model_fields if name in settings.model_fields_set
    }
    return {
        name: ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }


def null_settings(settings: Settings) -> Settings:
    """The same service without a model: the null backend needs no setting that belongs to one."""
    kept = {
        name: getattr(settings, name)
        for name in type(settings).model_fields
        if name in settings.model_fields_set and name not in ModelSettings.model_fields
    }
    return type(settings).model_construct(**kept, backend="null", _fields_set={*kept, "backend"})


@asynccontextmanager
async def started(settings: Settings, name: str, folder: Path, wait_seconds: float) -> AsyncIterator[Serving]:
    """`resnet-serve serve` as a process of its own, ready on a free port of this machine; it ends with the block.

    Raises `StartError` with what it said last where it ends, at its start or later, or is not ready in time.
    """
    port = _free_port()
    log = folder / f"{name}.log"
    own = {f"{ENV_PREFIX}HOST": "127.0.0.1", f"{ENV_PREFIX}PORT": str(port)}
    began = time.monotonic()
    with log.open("wb") as output:
        process = Child(children.command("", "serve"), environment_of(settings) | own, stdout=output, stderr=output)
    target = Target("http", "127.0.0.1", port)
    ready = asyncio.create_task(_ready(target, wait_seconds, is_starting=True))
    ended = asyncio.create_task(process.ended())
    try:
        await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise StartError(f"The server ended with status {ended.result()}.{children.last_words(log)}")
        try:
            health = await ready
        except StartError as error:
            raise StartError(f"{error}{children.last_words(log)}") from None
        with _ends_with(ended, log):
            yield Serving(target, health, process.id, time.monotonic() - began)
    finally:
        ready.cancel()
        # Ctrl-C's signal: nobody else sends it requests, so that it need not linger.
        process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(asyncio.shield(ended), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await ended


@contextmanager
def _ends_with(ended: asyncio.Task[int], log: Path) -> Iterator[None]:
    """A block that ends when the server does: minutes of refused connections are no measurement."""
    task = asyncio.current_task()
    assert task is not None
    is_inside, is_stopped = True, False

    def stop(_: asyncio.Task[int]) -> None:
        nonlocal is_stopped
        if is_inside:
            is_stopped = True
            task.cancel()

    ended.add_done_callback(stop)
    try:
        yield
    except (asyncio.CancelledError, StartError):
        # That nothing answered is what a server's end looks like from outside. Who else cancels is not kept from it.
        if not ended.done() or (is_stopped and task.uncancel() > 0) or (not is_stopped and task.cancelling()):
            raise
    finally:
        is_inside = False
    if ended.done():
        raise StartError(f"The server ended with status {ended.result()} during the run.{children.last_words(log)}")


async def reached(target: Target, wait_seconds: float) -> Serving:
    """The service at a person's URL, once it is ready. No redirect is followed, and no proxy is used.

    Raises `StartError`: nobody listens, who answers is not this service, or it is not ready in time.
    """
    return Serving(target, await _ready(target, wait_seconds, is_starting=False))


async def _ready(target: Target, wait_seconds: float, *, is_starting: bool) -> dict[str, Any]:
    give_up_at = time.monotonic() + wait_seconds
    # The same certificates as the load's own connections trust, not httpx's.
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
    """What /readyz says. Raises `SettingError` for an answer that is not this service's."""
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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
