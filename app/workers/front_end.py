"""A front-end process: the whole HTTP service, except that the engine runs in another process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

from ..batching import Schedule
from ..classifier import Classifier
from ..engine.board import Board
from ..engine.remote import RemoteEngine
from ..engine.segment import Segment, SlotLayout
from ..errors import EngineUnavailable
from ..interpreter import leave, spare_requests_from_collection
from ..metrics import Metrics
from ..pool import LoadedModel, ModelConflict, Pool, PooledModel
from ..processes.channel import Channel, Message
from ..processes.shared_memory import take_from_memory
from ..progress import LogReporter
from ..server.app import Hooks, Parts
from ..server.lifecycle import Server
from ..server.process import build_server
from ..settings import Settings
from .facts import facts_from_json, fields_of

logger = logging.getLogger(__name__)

# How long a replacement may delay clients that have connected.
_PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_FAILED = "The model's process ends again and again; this server ends, to be started again."


@dataclass(frozen=True, slots=True)
class Place:
    """The position of this front-end among the others."""

    number: int
    """The index of its cell on the board."""
    count: int
    """The number of front-ends."""
    is_replacement: bool
    """Whether the service is ready without it. It then accepts no connection until it has a model (for five seconds
    at most), so that it refuses no request for want of one."""


def serve_front_end(
    settings: Settings, control: Channel, metrics: Metrics, place: Place, listener: int, board: int
) -> int:
    """Serve on the socket `listener` until told to stop, or until the supervisor has died; returns the exit status.

    `settings` are this front-end's share.
    """
    shared = Board(board)

    def on_failure(error: Exception) -> None:
        # Without an orderly shutdown: that would close the listener, at which the clients of the replacement wait.
        leave(1)

    front_end = _FrontEnd(settings, control, shared, place.number, metrics, lambda sent: server.handle_exit(sent, None))
    hooks = Hooks(LogReporter(), lambda model: None, on_failure)
    presentable = front_end.until_ready if place.is_replacement else front_end.at_once
    server = build_server(settings, hooks, Parts(metrics, place.count, front_end.keep_loaded, presentable))
    _take_signals_from_the_supervisor(server)
    spare_requests_from_collection()
    server.run(sockets=[socket.socket(fileno=listener)])
    return 0


def _take_signals_from_the_supervisor(server: Server) -> None:
    def no_handlers() -> AbstractContextManager[None]:
        return nullcontext()

    server.capture_signals = no_handlers  # type: ignore[method-assign,assignment]


class _SharedReservations:
    """Reservations of all front-ends, counted on the board of one run of an engine."""

    def __init__(self, board: Board, number: int) -> None:
        self._board = board
        self._number = number
        self._held = 0
        board.hold(number, 0)

    def others(self) -> int:
        return self._board.held() - self._held

    def publish(self, held: int) -> None:
        self._held = held
        self._board.hold(self._number, held)


class _FrontEnd:
    """Carries out the supervisor's messages: connects engines, retires models, and forwards signals."""

    def __init__(
        self,
        settings: Settings,
        control: Channel,
        board: Board,
        number: int,
        metrics: Metrics,
        on_signal: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._control = control
        self._board = board
        self._number = number
        self._metrics = metrics
        self._on_signal = on_signal
        self._engines: asyncio.Queue[Message] = asyncio.Queue()
        # By the supervisor's key of each model.
        self._models: dict[int, PooledModel] = {}
        self._retired: set[int] = set()
        self._is_ready = asyncio.Event()

    async def at_once(self) -> None:
        """Accept connections at once, and refuse requests while the model loads."""

    async def until_ready(self) -> None:
        """Wait for a model, for the time limit, or for a signal to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._is_ready.wait()

    async def keep_loaded(self, classifier: Classifier, hooks: Hooks) -> None:
        """Serve each engine that the supervisor connects; for ever."""

        def on_message(message: Message) -> None:
            if message.kind == "engine":
                self._engines.put_nowait(message)
            elif message.kind == "retire":
                self._retire(classifier.pool, message.fields["model"])
            elif message.kind == "signal":
                self._is_ready.set()
                self._on_signal(message.fields["number"])
            elif message.kind == "failed":
                classifier.failure = _FAILED

        # Without a supervisor nothing else would stop this process: it answers its accepted requests and ends.
        self._control.listen(on_message, lambda: self._on_signal(signal.SIGINT))
        looking = asyncio.create_task(self._look_often(classifier, hooks))
        try:
            await classifier.decoder.start()
            self._board.beat(self._number, time.monotonic())
            # Only now: a front-end whose decoders do not start has not started. It must not be restarted for ever.
            self._control.tell("up")
            async with asyncio.TaskGroup() as engines:
                while True:
                    engines.create_task(self._serve_one(classifier.pool, await self._engines.get()))
        except* Exception as errors:
            logger.exception("The front-end cannot go on.")
            hooks.on_failure(errors.exceptions[0])
        finally:
            looking.cancel()

    async def _look_often(self, classifier: Classifier, hooks: Hooks) -> None:
        """Show that the event loop runs, and end the process if its decoders are beyond repair; for ever."""
        while True:
            self._board.beat(self._number, time.monotonic())
            state = classifier.state()
            if state.phase == "failed" and classifier.failure is None:
                logger.critical("%s This process ends, to be replaced.", state.reason)
                hooks.on_failure(EngineUnavailable(state.reason))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _serve_one(self, pool: Pool, message: Message) -> None:
        """Use one run of an engine, in place of its previous run or of the model that it replaces."""
        key, replaced = message.fields["model"], message.fields["replaces"]

        async def open_model() -> LoadedModel:
            return self._model(message)

        before = self._models.get(key) or self._models.get(replaced)
        try:
            pooled = await pool.load(open_model, replaces=before, may_be_default=message.fields["is_default"])
        except (EngineUnavailable, ModelConflict):
            return
        del before  # a reference would be kept as long as this call runs
        if key in self._retired:
            pool.retire(pooled)
            return
        self._models[key] = pooled
        if replaced is not None:
            self._retire(pool, replaced)
        spare_requests_from_collection()
        self._metrics.look()
        self._is_ready.set()
        self._control.tell("ready")
        await pooled.model.engine.until_lost()
        self._metrics.look()

    def _retire(self, pool: Pool, key: int) -> None:
        """Give out no new leases of the model, even if it is still being connected."""
        self._retired.add(key)
        if (pooled := self._models.pop(key, None)) is not None:
            pool.retire(pooled)

    def _model(self, message: Message) -> LoadedModel:
        connection, memory, facts, board_descriptor = message.descriptors
        try:
            layout = SlotLayout(**message.fields["layout"])
            board = Board(board_descriptor)
            engine = RemoteEngine(socket.socket(fileno=connection), Segment(memory, layout), board)
            known = facts_from_json(take_from_memory(facts))
        finally:
            for descriptor in (memory, facts, board_descriptor):
                os.close(descriptor)
        return LoadedModel(
            **fields_of(known),
            engine=engine,
            schedule=Schedule(
                self._settings.max_queue,
                count_shed=self._metrics.count_shed,
                shared=_SharedReservations(board, self._number),
            ),
            metrics=self._metrics.of_model(known.identity),
        )
