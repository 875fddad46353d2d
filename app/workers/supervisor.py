"""The parent of all processes of a service: starts them, starts them again, and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..engine.board import Board, create_board
from ..engine.segment import SlotLayout, create_segment
from ..errors import DeviceLost, StartError
from ..loading import ModelFacts
from ..logs import share_output
from ..metrics import SharedFiles
from ..opening import Reporter
from ..settings import Settings
from .child import Child
from .control import Message, take_from_memory
from .facts import facts_from_json
from .restarts import Restarts

logger = logging.getLogger(__name__)

OnReady = Callable[[ModelFacts, str], None]

ENGINE = "engine"
# The third death within five minutes is the last: what two restarts did not cure, a third will not.
_MOST_ENGINE_DEATHS, _ENGINE_WINDOW_SECONDS = 3, 300.0
# Of a front-end that never got as far as to listen.
_MOST_FALSE_STARTS = 3
# Beyond linger and grace, until a front-end that does not end is killed.
_EXTRA_SECONDS = 5.0


def front_end_name(number: int) -> str:
    return f"front-end-{number}"


class Supervisor:
    """Belongs to one event loop; `run` once."""

    def __init__(
        self,
        settings: Settings,
        divided: list[Settings],
        listeners: list[socket.socket],
        metrics_folder: Path,
        reporter: Reporter,
        on_ready: Callable[[ModelFacts], None],
    ) -> None:
        """`divided` and `listeners` have one of each front-end's own. What waits at a listener whose front-end died
        is its successor's.
        """
        self._settings = settings
        self._divided = divided
        self._listeners = listeners
        self._metrics_folder = metrics_folder
        self._reporter = reporter
        self._on_ready = on_ready
        self._has_announced = False
        self._board_descriptor = create_board()
        self._board = Board(self._board_descriptor)
        self._log_lock = os.memfd_create("resnet-log", os.MFD_CLOEXEC)
        self._front_ends: dict[int, Child] = {}
        self._engine: Child | None = None
        self._facts: int | None = None
        """The descriptor of what the living engine's model is; None until it has loaded."""
        self._layout: SlotLayout | None = None
        self._is_stopping = False
        self._failure: Exception | None = None
        self._stop = asyncio.Event()

    async def run(self) -> Exception | None:
        """Serve until a signal, or until what died cannot be cured; returns that error, or None."""
        loop = asyncio.get_running_loop()
        share_output(self._log_lock)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        front_ends = [loop.create_task(self._keep_front_end(number)) for number in range(len(self._divided))]
        engine = loop.create_task(self._keep_engine())
        stop = loop.create_task(self._stop.wait())
        # A keeper that ends by itself has failed, in a way that nobody thought of.
        await asyncio.wait([stop, engine, *front_ends], return_when=asyncio.FIRST_COMPLETED)
        self._begin_stop()
        await self._end_all(front_ends, engine)
        for task in (engine, *front_ends):
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("The supervisor failed unexpectedly.", exc_info=error)
                self._fail(DeviceLost("The supervisor failed unexpectedly"))
        return self._failure

    # --- the end

    def _on_signal(self, number: int) -> None:
        self._begin_stop()
        for child in self._front_ends.values():
            child.send("signal", number=number)

    def _begin_stop(self) -> None:
        """No front-end is started any more: each closes its own door, which is the last to hold it."""
        self._is_stopping = True
        for listener in self._listeners:
            listener.close()
        self._stop.set()

    def _fail(self, error: Exception) -> None:
        """End the service: to start its processes again is no cure."""
        self._failure = self._failure or error
        for child in self._front_ends.values():
            child.send("failed")
        self._begin_stop()
        for child in self._front_ends.values():
            child.send("signal", number=int(signal.SIGINT))

    async def _end_all(self, front_ends: list[asyncio.Task[None]], engine: asyncio.Task[None]) -> None:
        """First those that still answer, then what they ask. Who does not end in time is killed."""
        settings = self._settings
        seconds = settings.shutdown_linger_seconds + max(1.0, settings.shutdown_grace_seconds) + _EXTRA_SECONDS
        await asyncio.wait(front_ends, timeout=seconds)
        for child in self._front_ends.values():
            child.kill()
        if self._engine is not None:
            self._engine.send("stop")
        await asyncio.wait([engine], timeout=_EXTRA_SECONDS)
        if self._engine is not None:
            self._engine.kill()
        await asyncio.wait([engine, *front_ends])

    async def _pause(self, seconds: float) -> None:
        """Before something is started again; a stop ends it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    # --- front-ends

    async def _keep_front_end(self, number: int) -> None:
        deaths = Restarts(None, 60.0, 0.1)
        false_starts = Restarts(_MOST_FALSE_STARTS, _ENGINE_WINDOW_SECONDS, 0.5)
        files = SharedFiles(self._metrics_folder, front_end_name(number))
        while not self._is_stopping:
            child = await Child.start(
                "front-end",
                files.process,
                partial(self._from_front_end, number),
                [self._listeners[number].fileno(), self._board_descriptor, self._log_lock],
                {"PROMETHEUS_MULTIPROC_DIR": str(self._metrics_folder)},
                settings=self._divided[number].model_dump_json(),
                number=number,
                is_replacement=self._engine is not None and self._engine.is_ready,
            )
            self._front_ends[number] = child
            if self._is_stopping:
                child.send("signal", number=int(signal.SIGINT))
            self._pair(number)
            how = await child.ended()
            del self._front_ends[number]
            self._board.hold(number, 0)
            files.forget_gauges()
            if self._is_stopping:
                return
            delay = deaths.died() if child.is_up else false_starts.died()
            if delay is None:
                self._fail(StartError(f"Front-end processes do not start; the last one ended with {how}."))
                return
            logger.error("Front-end process %d (%d) ended: %s. It is replaced.", number, child.process.pid, how)
            await self._pause(delay)

    def _from_front_end(self, number: int, child: Child, message: Message) -> None:
        if message.kind == "up":
            child.is_up = True
        elif message.kind == "ready":
            child.is_ready = True
            self._announce()

    def _announce(self) -> None:
        everybody = [self._front_ends.get(number) for number in range(len(self._divided))]
        if self._has_announced or self._facts is None or not all(child and child.is_ready for child in everybody):
            return
        self._has_announced = True
        self._on_ready(facts_from_json(take_from_memory(self._facts)))

    # --- the engine

    async def _keep_engine(self) -> None:
        deaths = Restarts(_MOST_ENGINE_DEATHS, _ENGINE_WINDOW_SECONDS, 0.5)
        files = SharedFiles(self._metrics_folder, ENGINE)
        has_served = False
        while not self._is_stopping:
            self._engine = child = await Child.start(
                ENGINE,
                files.process,
                self._from_engine,
                [self._board_descriptor, self._log_lock],
                {"PROMETHEUS_MULTIPROC_DIR": str(self._metrics_folder)},
                settings=self._settings.model_dump_json(),
            )
            if self._is_stopping:
                child.send("stop")
            how = await child.ended()
            self._engine = None
            self._forget_facts()
            files.forget_gauges()
            has_served = has_served or child.is_ready
            if self._is_stopping:
                return
            if child.failure is not None and not has_served:
                self._fail(StartError(child.failure))
                return
            why = f"{child.failure} ({how})" if child.failure else how
            delay = deaths.died()
            if delay is None:
                self._fail(
                    DeviceLost(
                        f"The model's process has ended {_MOST_ENGINE_DEATHS} times within "
                        f"{_ENGINE_WINDOW_SECONDS / 60:.0f} minutes, at last: {why}. To start it again is no cure"
                    )
                )
                return
            logger.error(
                "The model's process (%d) ended: %s. It is started again in %.1f s.", child.process.pid, why, delay
            )
            await self._pause(delay)

    def _from_engine(self, child: Child, message: Message) -> None:
        fields = message.fields
        if message.kind == "step":
            self._reporter.step(fields["text"])
        elif message.kind == "warn":
            self._reporter.warn(fields["text"])
        elif message.kind == "downloading":
            self._reporter.downloading(fields["name"], fields["received"], fields["expected"])
        elif message.kind == "loaded":
            (self._facts,) = message.descriptors
            self._layout = SlotLayout(**fields["layout"])
            for number in self._front_ends:
                self._pair(number)
        elif message.kind == "ready":
            child.is_ready = True
        elif message.kind == "failed":
            child.failure = fields["error"]

    def _forget_facts(self) -> None:
        if self._facts is not None:
            os.close(self._facts)
        self._facts = self._layout = None

    def _pair(self, number: int) -> None:
        """Give a front-end and the engine a connection and shared memory, once both are there."""
        child = self._front_ends.get(number)
        if child is None or self._engine is None or self._facts is None or self._layout is None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        memory = create_segment(self._layout)
        layout = self._layout.as_fields()
        try:
            with ours, theirs:
                self._engine.send("attach", [ours.fileno(), memory], layout=layout)
                child.send("engine", [theirs.fileno(), memory, self._facts], layout=layout)
        finally:
            os.close(memory)
