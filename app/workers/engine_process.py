"""The process of an engine, the only one that holds its model's weights."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from typing import Any, NoReturn

import uvloop

from ..engine import InProcessEngine
from ..engine.board import Board
from ..engine.host import EngineHost
from ..engine.segment import Segment, SlotLayout
from ..interpreter import leave, spare_requests_from_collection
from ..loading import Cancellation, load_model
from ..metrics import Metrics
from ..pool import LoadedModel, ModelFacts, Pool, serve_model
from ..processes.channel import Channel, Message
from ..processes.shared_memory import put_in_memory
from ..progress import ChannelReporter
from ..settings import Settings
from .facts import facts_to_json, fields_of, layout_for

logger = logging.getLogger(__name__)

# How long front-ends may continue to answer when the supervisor has died.
_ORPHANED_SECONDS = 20.0


def serve_engine(settings: Settings, control: Channel, metrics: Metrics, board: int) -> NoReturn:
    """Load the model and run it for the front-ends until told to stop, or until the supervisor has died.

    Ends the process.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_Engine(settings, control, metrics, Board(board)).serve())
        # A load, or a call that hangs, holds a thread, for which the runner would wait.
        leave(status)


class _Engine:
    def __init__(self, settings: Settings, control: Channel, metrics: Metrics, board: Board) -> None:
        self._settings = settings
        self._control = control
        self._metrics = metrics
        self._board = board
        self._cancellation = Cancellation()
        self._stop = asyncio.Event()
        self._is_orphaned = False
        self._pool = Pool()
        self._host: EngineHost | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        self._control.listen(self._on_message, self._on_gone)
        working = asyncio.ensure_future(self._work())
        stop = asyncio.ensure_future(self._stop.wait())
        looking = asyncio.ensure_future(self._metrics.look_often())
        await asyncio.wait([working, stop], return_when=asyncio.FIRST_COMPLETED)
        self._cancellation.cancel()
        looking.cancel()
        if working.done():
            return working.result()
        if self._is_orphaned and self._host is not None:
            await asyncio.wait([asyncio.ensure_future(self._host.until_nobody())], timeout=_ORPHANED_SECONDS)
        if self._host is not None:
            await self._host.close()
        await self._pool.close()
        return 0

    async def _work(self) -> int:
        """Load the model and serve it until its engine is beyond repair; returns the exit status."""
        loop = asyncio.get_running_loop()
        error = await serve_model(
            self._pool,
            lambda: loop.run_in_executor(
                None,
                load_model,
                self._settings,
                self._metrics,
                ChannelReporter(self._control),
                self._cancellation.is_cancelled,
            ),
            on_loaded=self._begin,
            on_ready=self._is_ready,
        )
        if error is None:
            return 0
        self._control.tell("failed", error=str(error))
        if self._host is not None:
            await self._host.close()
        return 1

    def _is_ready(self, model: LoadedModel) -> None:
        assert self._host is not None
        spare_requests_from_collection()
        self._metrics.ready.set(1)
        self._host.is_ready()
        self._control.send("ready")

    def _begin(self, model: LoadedModel) -> None:
        self._host = EngineHost(model.engine, self._board)
        facts = put_in_memory("resnet-facts", facts_to_json(ModelFacts(**fields_of(model))))
        assert isinstance(model.engine, InProcessEngine)
        backend = model.engine.backend
        layout = layout_for(model, self._settings.max_queue + backend.concurrency * backend.max_batch_size)
        try:
            self._control.send("loaded", [facts], layout=layout.as_fields())
        finally:
            os.close(facts)
        ChannelReporter(self._control).step(f"Warming up {model.identity.name} on {model.device}")

    def _on_message(self, message: Message) -> None:
        if message.kind == "stop":
            self._stop.set()
        elif message.kind == "attach" and self._host is not None:
            connection, memory = message.descriptors
            segment = Segment(memory, SlotLayout(**message.fields["layout"]))
            os.close(memory)
            self._in_background(self._host.attach(socket.socket(fileno=connection), segment))
        elif message.kind == "retire":
            self._in_background(self._stop_when_unused())

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop_when_unused(self) -> None:
        """The model has been replaced or unloaded: stop when the front-ends have answered its last requests."""
        if self._host is not None:
            await self._host.until_nobody()
        self._stop.set()

    def _on_gone(self) -> None:
        self._is_orphaned = True
        self._stop.set()
