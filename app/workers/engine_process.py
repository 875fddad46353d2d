"""The engine's process: the only one that has the weights."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import NoReturn

import uvloop

from ..engine import InProcessEngine
from ..engine.board import Board
from ..engine.host import EngineHost
from ..engine.segment import Segment, SlotLayout
from ..errors import LoadCancelled, StartError
from ..interpreter import leave, spare_requests_from_collection
from ..loading import Cancellation, LoadedModel, load_model
from ..metrics import Metrics
from ..processes.channel import Channel, Message
from ..processes.shared_memory import put_in_memory
from ..progress import ChannelReporter
from ..settings import Settings
from .facts import facts_of, facts_to_json, layout_for

logger = logging.getLogger(__name__)

# Where the supervisor is gone: how long front-ends may go on answering.
_ORPHANED_SECONDS = 20.0


def serve_engine(settings: Settings, control: Channel, metrics: Metrics, board: int) -> NoReturn:
    """Load the model and run it for the front-ends until the supervisor says otherwise, or is gone.

    Ends the process.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_Engine(settings, control, metrics, Board(board)).serve())
        # A call that does not come back, or a load, holds a thread that a runner would wait for.
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
        self._host: EngineHost | None = None
        self._attaching: set[asyncio.Task[None]] = set()

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
            await self._host.engine.close()
        return 0

    async def _work(self) -> int:
        """Load, warm up, serve, until the engine is beyond repair: for ever, if all goes well. The exit status."""
        loop = asyncio.get_running_loop()
        reporter = ChannelReporter(self._control)
        try:
            model = await loop.run_in_executor(
                None, load_model, self._settings, self._metrics, reporter, self._cancellation.is_cancelled
            )
            self._begin(model)
            reporter.step(f"Warming up {model.identity.name} on {model.device}")
            await model.engine.start()
        except LoadCancelled:
            return 0
        except Exception as error:
            if not isinstance(error, StartError):
                logger.exception("Loading failed unexpectedly.")
            self._control.tell("failed", error=str(error))
            return 1
        assert self._host is not None
        spare_requests_from_collection()
        self._metrics.ready.set(1)
        self._host.is_ready()
        self._control.send("ready")
        lost = await model.engine.until_lost()
        self._control.tell("failed", error=str(lost))
        await self._host.close()
        return 1

    def _begin(self, model: LoadedModel) -> None:
        self._host = EngineHost(model.engine, self._board)
        facts = put_in_memory("resnet-facts", facts_to_json(facts_of(model)))
        assert isinstance(model.engine, InProcessEngine)
        backend = model.engine.backend
        layout = layout_for(model, self._settings.max_queue + backend.concurrency * backend.max_batch_size)
        try:
            self._control.send("loaded", [facts], layout=layout.as_fields())
        finally:
            os.close(facts)

    def _on_message(self, message: Message) -> None:
        if message.kind == "stop":
            self._stop.set()
        elif message.kind == "attach" and self._host is not None:
            connection, memory = message.descriptors
            segment = Segment(memory, SlotLayout(**message.fields["layout"]))
            os.close(memory)
            task = asyncio.ensure_future(self._host.attach(socket.socket(fileno=connection), segment))
            self._attaching.add(task)
            task.add_done_callback(self._attaching.discard)

    def _on_gone(self) -> None:
        self._is_orphaned = True
        self._stop.set()
