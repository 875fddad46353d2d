"""The other end of `RemoteEngine`: one engine, and the front-ends that ask it."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from functools import partial
from typing import cast

from ..errors import Internal
from ..processes.framing import Records
from ..types import InputSpec, Want
from . import wire
from .base import Engine, Scored
from .board import Board
from .segment import Segment

logger = logging.getLogger(__name__)

# How often the prediction is told anew where nothing happens that would tell it.
_PUBLISH_SECONDS = 0.05


class EngineHost:
    """Serves `engine` to front-ends. Belongs to one event loop.

    A front-end that goes takes its requests along: they are cancelled, and its memory is free when the last batch that
    holds an image of it has ended.
    """

    def __init__(self, engine: Engine, board: Board) -> None:
        self._engine = engine
        self._board = board
        self._front_ends: set[_FrontEnd] = set()
        self._is_ready = False
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._publishing = asyncio.get_running_loop().create_task(self._publish_often())

    @property
    def pending(self) -> int:
        """Images that were asked for and are not settled, over all front-ends."""
        return sum(front_end.pending for front_end in self._front_ends)

    async def attach(self, connection: socket.socket, segment: Segment) -> None:
        """Serve the front-end at the other end of `connection`, whose images lie in `segment`."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _FrontEnd(self, segment), sock=connection)

    def is_ready(self) -> None:
        """The engine is warm: everybody is told, also who comes later."""
        self._is_ready = True
        self.publish()
        for front_end in self._front_ends:
            front_end.say_ready()

    async def until_nobody(self) -> None:
        """Wait until no front-end is left."""
        await self._nobody.wait()

    async def close(self) -> None:
        """Leave the front-ends; the engine stays the caller's."""
        self._publishing.cancel()
        for front_end in list(self._front_ends):
            front_end.leave()

    # --- what front-ends tell

    @property
    def engine(self) -> Engine:
        return self._engine

    def joined(self, front_end: _FrontEnd) -> None:
        self._front_ends.add(front_end)
        self._nobody.clear()
        if self._is_ready:
            front_end.say_ready()

    def left(self, front_end: _FrontEnd) -> None:
        self._front_ends.discard(front_end)
        if not self._front_ends:
            self._nobody.set()
        self.publish()

    def publish(self) -> None:
        self._board.publish(self._engine.state(), time.monotonic())

    async def _publish_often(self) -> None:
        while True:
            self.publish()
            await asyncio.sleep(_PUBLISH_SECONDS)


class _FrontEnd(asyncio.Protocol):
    """One front-end: what it asked, and what it is told."""

    def __init__(self, host: EngineHost, segment: Segment) -> None:
        self._host = host
        self._segment: Segment | None = segment
        self._tasks: dict[int, asyncio.Task[Scored]] = {}
        self._slots: set[int] = set()
        self._records = Records(wire.REQUEST)
        self._to_send = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    @property
    def pending(self) -> int:
        return len(self._tasks)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._host.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for task in self._tasks.values():
            task.cancel()
        self._let_go()
        self._host.left(self)

    def data_received(self, data: bytes) -> None:
        for kind, spec, want, slot, request_id, deadline in self._records.feed(data):
            if kind == wire.SUBMIT and self._is_new(request_id, slot) and wire.is_known(spec, want):
                self._begin(request_id, slot, wire.INPUTS[spec], Want(want), deadline)
            elif kind == wire.CANCEL:
                # It may have been settled a moment ago: the record that says so is on its way.
                if request_id in self._tasks:
                    self._tasks[request_id].cancel()
            else:
                logger.error("A front-end sent what makes no sense; it is left.")
                self.leave()
                return
        asyncio.get_running_loop().call_soon(self._host.publish)

    def say_ready(self) -> None:
        self._send(wire.ANSWER.pack(wire.READY, 0, 0, 0, 0.0, 0.0))

    def leave(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _is_new(self, request_id: int, slot: int) -> bool:
        count = self._segment.layout.count if self._segment else 0
        return request_id not in self._tasks and slot not in self._slots and slot < count

    def _begin(self, request_id: int, slot: int, spec: InputSpec, want: Want, deadline: float) -> None:
        assert self._segment is not None
        run = self._host.engine.run(self._segment.item(slot, spec), want, deadline)
        task: asyncio.Task[Scored] = asyncio.get_running_loop().create_task(run)
        self._tasks[request_id] = task
        self._slots.add(slot)
        # Not in the task itself: one that is cancelled before it has begun never runs.
        task.add_done_callback(partial(self._has_settled, request_id, slot))

    def _has_settled(self, request_id: int, slot: int, task: asyncio.Task[Scored]) -> None:
        del self._tasks[request_id]
        # The slot of one that was cancelled may be written again before the device's thread has copied it: that spoils
        # the row of this item alone, which nobody waits for.
        self._slots.discard(slot)
        self._let_go()
        error = None if task.cancelled() else task.exception()
        if self._transport is None or self._segment is None:
            return
        if task.cancelled():
            record = wire.ANSWER.pack(wire.RELEASED, 0, 0, request_id, 0.0, 0.0)
        elif error is not None:
            record = wire.pack_error(request_id, error)
        elif (scored := task.result()).outputs.scores.shape != (self._segment.layout.classes,):
            logger.error("The model answered with %s scores.", scored.outputs.scores.shape)
            record = wire.pack_error(request_id, Internal())
        else:
            # The input has been read: its slot takes the scores.
            self._segment.scores(slot)[:] = scored.outputs.scores
            record = wire.pack_scored(
                request_id, scored.outputs, scored.batch_size, scored.queue_seconds, scored.inference_seconds
            )
        self._send(record)

    def _let_go(self) -> None:
        """Of the memory, once the front-end has gone and nothing of it runs: now, not with the garbage collector."""
        if self._transport is None and not self._tasks:
            self._segment = None

    def _send(self, record: bytes) -> None:
        """With all else that this round of the event loop has to say."""
        if not self._to_send:
            asyncio.get_running_loop().call_soon(self._flush)
        self._to_send += record

    def _flush(self) -> None:
        if self._transport is not None and self._to_send:
            self._transport.write(bytes(self._to_send))
        self._to_send.clear()
        self._host.publish()
