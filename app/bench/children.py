"""Child processes for measurements, and the commands that they receive over a channel.

    parent → child   the name of a handler, with its arguments
    child → parent   done (n) now and then, then result (value) or error (text)

Measuring runs apart from reporting, so that neither is in the other's figures.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import processes
from ..errors import StartError
from ..processes import Need, child_environment
from ..processes.channel import Channel, Message
from ..processes.children import Child as Process

_PACKAGE = __name__.partition(".")[0]
_NEWS_SECONDS = 0.2
_STOP_SECONDS = 10.0
# The service may be measured over HTTPS, with its own certificate.
NEEDS = Need.COMPUTE | Need.GPU | Need.DOWNLOAD

Handler = Callable[[dict[str, Any], Callable[[int], None]], Any]


def command(module: str, *arguments: str) -> list[str]:
    """A command line that runs a module of this package."""
    return processes.command(f"{_PACKAGE}{module}", *arguments)


class Child:
    """A process that answers one command after the other."""

    def __init__(self, name: str, process: Process, channel: Channel, log: Path) -> None:
        self.name = name
        self._process = process
        self._channel = channel
        self._log = log
        self._is_busy = False
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        channel.listen(self._messages.put_nowait, lambda: self._messages.put_nowait(None))

    @classmethod
    async def start(cls, name: str, module: str, folder: Path, more: Mapping[str, str] | None = None) -> Child:
        """Run `module` of this package; its output is kept in `folder`."""
        log = folder / f"{name}.log"
        environment = more if more is not None else child_environment(NEEDS)
        channel, theirs = Channel.pair()
        with theirs, log.open("wb") as output:
            try:
                line = command(module, str(theirs.fileno()))
                process = Process(line, environment, stdout=output, stderr=output, descriptors=(theirs.fileno(),))
            except BaseException:
                channel.close()
                raise
        return cls(name, process, channel, log)

    async def ask(self, do: str, on_done: Callable[[int], None] = lambda done: None, **values: Any) -> Any:
        """The command's result. Raises `StartError` with the child's message if it failed."""
        self._is_busy = True
        with suppress(OSError):  # the child has ended: the end of the channel is handled below
            self._channel.send(do, **values)
        while (message := await self._messages.get()) is not None:
            self._is_busy = message.kind == "done"
            if message.kind == "error":
                raise StartError(f"{self.name}: {message.fields['text']}")
            if message.kind == "result":
                return message.fields["value"]
            on_done(message.fields["done"])
        self._messages.put_nowait(None)
        status = await self._process.ended()
        raise StartError(f"{self.name}: its process ended with status {status}.{last_words(self._log)}")

    async def close(self) -> None:
        """End the child by closing its channel. A load that is still running is killed."""
        if self._is_busy:
            self._process.kill()
        self._channel.close()
        try:
            await asyncio.wait_for(self._process.ended(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.ended()


def last_words(log: Path, lines: int = 3) -> str:
    """The end of a process's log, to append to a sentence; empty if there is none."""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " It said last: " + " | ".join(said[-lines:]) if said else ""


def answer_commands(handlers: Mapping[str, Handler]) -> None:
    """Answer commands in the child until the parent closes the channel."""
    channel = Channel.inherited(sys.argv[1], patience_seconds=None)
    while (message := channel.receive()) is not None:
        try:
            result = handlers[message.kind](message.fields, _news(channel))
        except StartError as error:
            _send(channel, "error", text=str(error))
        else:
            _send(channel, "result", value=result)


def _news(channel: Channel) -> Callable[[int], None]:
    """Sends the number done, a few times a second."""
    next_at = time.monotonic() + _NEWS_SECONDS

    def tell(done: int) -> None:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at:
            next_at = now + _NEWS_SECONDS
            _send(channel, "done", done=done)

    return tell


def _send(channel: Channel, kind: str, **fields: Any) -> None:
    try:
        channel.send(kind, **fields)
    except OSError:
        os._exit(0)  # the parent has ended
