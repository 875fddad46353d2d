"""The decoding processes of one decoder: started, and replaced when they end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from ..errors import EngineUnavailable
from ..processes import ONE_THREAD, child_environment, command
from ..processes.children import Child
from ..types import DecodeMode
from .decode import DecodeLimits
from .decoding_child import ChildEnded, DecodingChild
from .exchange import Exchange, create_exchange

logger = logging.getLogger(__name__)


class DecodingChildren:
    """Starts processes for one decoder and keeps account of those that live."""

    def __init__(
        self, limits: DecodeLimits, mode: DecodeMode, memory_bytes: int, buffer_bytes: int, timeout_seconds: float
    ) -> None:
        """`memory_bytes` is the memory that an image may take there, `buffer_bytes` the size of the largest file."""
        self._buffer_bytes = buffer_bytes
        self._options = json.dumps(
            {
                "limits": asdict(limits),
                "mode": mode,
                "memory_bytes": memory_bytes,
                "buffer_bytes": buffer_bytes,
                # For where the parent, which ends it at the limit, cannot.
                "last_resort_seconds": 2 * timeout_seconds + 1,
            }
        )
        self._living: set[DecodingChild] = set()
        self.is_closed = False

    def living(self) -> list[DecodingChild]:
        return list(self._living)

    def start(self) -> DecodingChild:
        """A process that is ready for its first image. Blocks; raises `ChildEnded` or `OSError`."""
        memory = create_exchange(self._buffer_bytes)
        try:
            exchange = Exchange(memory, self._buffer_bytes)
            process, connection = self._spawn(memory)
        finally:
            os.close(memory)
        child = DecodingChild(process, connection, exchange)
        self._living.add(child)
        if self.is_closed:
            child.kill()
        if not child.wait_until_ready():
            child.kill()
            raise ChildEnded(f"exit status {self.wait(child)}")
        return child

    def _spawn(self, memory: int) -> tuple[Child, socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            given = (str(theirs.fileno()), str(memory), self._options)
            try:
                process = Child(
                    command("app.images.decoding_process", *given, flags=("-B",)),
                    child_environment(more=ONE_THREAD),
                    descriptors=(theirs.fileno(), memory),
                )
            except BaseException:
                ours.close()
                raise
        return process, ours

    def wait(self, child: DecodingChild) -> int:
        """The exit status of one that ended or was killed; may be asked again. Blocks."""
        status = child.wait()
        self._living.discard(child)
        return status

    def kill_all(self) -> None:
        """Also those that are being started."""
        self.is_closed = True
        for child in self.living():
            child.kill()

    def wait_for_all(self) -> None:
        """Blocks until they have ended."""
        for child in self.living():
            self.wait(child)


class Replacements:
    """Starts a decoder's processes in the background, another one for each that has ended. Of one event loop."""

    def __init__(
        self,
        children: DecodingChildren,
        on_started: Callable[[DecodingChild], None],
        on_failed: Callable[[EngineUnavailable], None],
    ) -> None:
        """`on_failed` is called where one could not be started in the background."""
        self._children = children
        self._on_started = on_started
        self._on_failed = on_failed
        self._tasks: set[asyncio.Task[Any]] = set()
        self.coming = 0
        """Processes that are being started, or that end and are then replaced."""

    async def start(self, count: int) -> None:
        """Raises `EngineUnavailable` where one does not start."""
        self.coming += count
        await asyncio.gather(*[self._start_one() for _ in range(count)])

    def start_in_background(self, count: int) -> None:
        for _ in range(count):
            self.coming += 1
            self._in_background(self._start_another())

    def replace(self, child: DecodingChild, on_status: Callable[[int], None]) -> None:
        """Wait for the end of `child`, give its exit status, and start another."""
        self.coming += 1
        self._in_background(self._replace(child, on_status))

    async def finish(self) -> None:
        """Wait until nothing is being started or ended."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _replace(self, child: DecodingChild, on_status: Callable[[int], None]) -> None:
        on_status(await asyncio.to_thread(self._children.wait, child))
        await self._start_another()

    async def _start_another(self) -> None:
        try:
            await self._start_one()
        except EngineUnavailable as error:
            self._on_failed(error)

    async def _start_one(self) -> None:
        try:
            if self._children.is_closed:
                raise ChildEnded
            child = await asyncio.to_thread(self._children.start)
        except (OSError, ChildEnded) as error:
            if not self._children.is_closed:
                logger.error("A decoding process could not be started: %s.", error)
            raise EngineUnavailable("No decoder could be started.", retry_after_seconds=5.0) from None
        finally:
            self.coming -= 1
        # One that was started while all were killed has been killed too, and is waited for.
        if not self._children.is_closed:
            self._on_started(child)

    def _in_background(self, work: Coroutine[object, object, None]) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                logger.exception("Keeping decoding processes failed unexpectedly.")

        task = asyncio.get_running_loop().create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
