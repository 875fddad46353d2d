"""The parent of all processes of a service: starts, restarts and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..engine.board import Board, create_board
from ..errors import DeviceLost, StartError
from ..interpreter import hold_stop_signals, take_stop_signals
from ..logs import share_output
from ..metrics import SharedFiles
from ..pool import ModelFacts
from ..processes.channel import Message
from ..progress import Reporter
from ..settings import Settings
from .child import Child
from .engine_keeper import Surroundings
from .engines import Engines
from .restarts import Restarts
from .watch import kill_what_stands_still

logger = logging.getLogger(__name__)

OnReady = Callable[[ModelFacts, str], None]

# For a front-end that fails before it listens and decodes: so many failures within five minutes.
_MOST_FALSE_STARTS, _WINDOW_SECONDS = 3, 300.0
# After linger and grace, the time until a front-end that has not ended is killed.
_EXTRA_SECONDS = 5.0


def front_end_name(number: int) -> str:
    return f"front-end-{number}"


class Supervisor:
    """Starts, restarts and stops all processes. Belongs to one event loop; `run` may be called once."""

    def __init__(
        self,
        settings: Settings,
        divided: list[Settings],
        listeners: list[socket.socket],
        metrics_folder: Path,
        reporter: Reporter,
        on_ready: Callable[[ModelFacts], None],
    ) -> None:
        """`divided` and `listeners` have one entry for each front-end. Connections that wait at the listener of a
        front-end that died are accepted by its replacement.
        """
        self._settings = settings
        self._divided = divided
        self._listeners = listeners
        self._metrics_folder = metrics_folder
        self._reporter = reporter
        self._on_ready = on_ready
        self._has_announced = False
        # Only for the front-ends' beats: each engine has its own board.
        self._board_descriptor = create_board()
        self._board = Board(self._board_descriptor)
        self._log_lock = os.memfd_create("resnet-log", os.MFD_CLOEXEC)
        self._front_ends: dict[int, Child] = {}
        self._is_stopping = False
        self._failure: Exception | None = None
        self._stop = asyncio.Event()
        surroundings = Surroundings(
            live=self._live,
            pause=self._pause,
            is_stopping=lambda: self._is_stopping,
            fail=self._fail,
            front_ends=lambda: list(self._front_ends.values()),
            reporter=reporter,
            metrics_folder=metrics_folder,
            log_lock=self._log_lock,
        )
        self.engines = Engines(surroundings, self._guarded)

    async def run(self) -> Exception | None:
        """Serve until a signal, or until an error that no restart can fix; returns that error, or None."""
        loop = asyncio.get_running_loop()
        share_output(self._log_lock)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        take_stop_signals()
        front_ends = [
            loop.create_task(self._guarded(self._keep_front_end(number))) for number in range(len(self._divided))
        ]
        self.engines.start_first(self._settings)
        watching = loop.create_task(
            self._guarded(kill_what_stands_still(self._board, self.engines.serving, self._front_ends))
        )
        await self._stop.wait()
        watching.cancel()
        await self._end_all(front_ends)
        # The loop removes its signal handlers when it closes; afterwards the caller still has files to remove.
        hold_stop_signals()
        return self._failure

    async def _guarded(self, keeper: Coroutine[Any, Any, None]) -> None:
        """Await a task; if it fails unexpectedly, end the service in good order."""
        try:
            await keeper
        except Exception as error:
            logger.exception("The supervisor failed unexpectedly.")
            self._fail(DeviceLost(f"The supervisor failed unexpectedly ({type(error).__name__})"))

    # --- the shutdown

    def _on_signal(self, number: int) -> None:
        self._begin_stop()
        for child in self._front_ends.values():
            child.send("signal", number=number)

    def _begin_stop(self) -> None:
        """Start no more front-ends, and close this process's listeners: each front-end closes the last copy itself."""
        self._is_stopping = True
        for listener in self._listeners:
            listener.close()
        self._stop.set()

    def _fail(self, error: Exception) -> None:
        """End the service, because restarting its processes does not help. Later failures change nothing."""
        if self._failure is not None:
            return
        self._failure = error
        for child in self._front_ends.values():
            child.send("failed")
        self._begin_stop()
        for child in self._front_ends.values():
            child.send("signal", number=int(signal.SIGINT))

    async def _end_all(self, front_ends: list[asyncio.Task[None]]) -> None:
        """End the front-ends, then the engines that they use. A process that does not end in time is killed."""
        settings = self._settings
        seconds = settings.shutdown_linger_seconds + max(1.0, settings.shutdown_grace_seconds) + _EXTRA_SECONDS
        await asyncio.wait(front_ends, timeout=seconds)
        for child in self._front_ends.values():
            child.kill()
        self.engines.send("stop")
        await self.engines.wait(_EXTRA_SECONDS)
        self.engines.kill()
        await self.engines.wait()
        await asyncio.wait(front_ends)

    async def _pause(self, seconds: float) -> None:
        """Wait before a restart; a stop ends the wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _live(
        self,
        role: str,
        name: str,
        on_message: Callable[[Child, Message], None],
        begin: Callable[[Child], None],
    ) -> tuple[Child | None, str]:
        """Run a child once; returns it, or None if it could not be started, and how it ended."""
        environment = {"PROMETHEUS_MULTIPROC_DIR": str(self._metrics_folder)}
        try:
            child = await Child.start(role, name, on_message, environment)
        except OSError as error:
            return None, f"could not be started ({error.strerror or error})"
        begin(child)
        return child, await child.ended()

    # --- front-ends

    async def _keep_front_end(self, number: int) -> None:
        deaths = Restarts(None, 60.0, 0.1)
        false_starts = Restarts(_MOST_FALSE_STARTS, _WINDOW_SECONDS, 0.5)
        files = SharedFiles(self._metrics_folder, front_end_name(number))
        on_message, begin = partial(self._from_front_end, number), partial(self._begin_front_end, number)
        while not self._is_stopping:
            child, how = await self._live("front-end", files.process, on_message, begin)
            self._front_ends.pop(number, None)
            self.engines.forget_front_end(number)
            files.forget_gauges()
            if self._is_stopping:
                return
            delay = deaths.died() if child is not None and child.is_up else false_starts.died()
            if delay is None:
                self._fail(StartError(f"Front-end processes do not start; the last one {how}."))
                return
            logger.error("Front-end process %d %s. It is replaced.", number, how)
            await self._pause(delay)

    def _begin_front_end(self, number: int, child: Child) -> None:
        self._front_ends[number] = child
        if self._is_stopping:
            # The stop came while it was being started: its listener is closed.
            child.send("signal", number=int(signal.SIGINT))
            return
        child.send(
            "start",
            [self._listeners[number].fileno(), self._board_descriptor, self._log_lock],
            name=child.name,
            settings=self._divided[number].model_dump_json(),
            number=number,
            count=len(self._divided),
            is_replacement=self.engines.is_ready,
        )
        self.engines.pair(child)

    def _from_front_end(self, number: int, child: Child, message: Message) -> None:
        if message.kind == "up":
            child.is_up = True
        elif message.kind == "ready":
            child.is_ready = True
            self._announce()

    def _announce(self) -> None:
        everybody = [self._front_ends.get(number) for number in range(len(self._divided))]
        if self._has_announced or not all(child and child.is_ready for child in everybody):
            return
        if (facts := self.engines.default_facts) is not None:
            self._has_announced = True
            self._on_ready(facts)
