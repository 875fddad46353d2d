"""The engine seen from another process: the same contract, pixels in shared memory, answers in small records."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import cast

import numpy as np

from ..batching import retry_after_seconds
from ..errors import DeadlineExceeded, DeviceLost, EngineUnavailable, Overloaded, ServiceError
from ..processes.framing import Records
from ..types import Pixels
from . import wire
from .base import EngineState, Scored
from .board import Board
from .segment import Segment

# How long an engine that is gone takes to be there again, about: what whoever it refused is told.
_BACK_SECONDS = 2.0
# The engine ends what is late by itself, and counts it. An engine that does not is not waited for.
_LATE_SECONDS = 0.25


class RemoteEngine:
    """One life of an engine in a process of its own, at the other end of `connection`.

    When that process ends, everything that was asked is `EngineUnavailable`, and this object has served: a new engine
    is a new one of these.
    """

    def __init__(self, connection: socket.socket, segment: Segment, board: Board) -> None:
        self._connection = connection
        self._segment: Segment | None = segment
        self._board = board
        # Last in, first out: few slots are ever touched where few are in use at once.
        self._free = list(range(segment.layout.count))
        self._asked: dict[int, _Asked] = {}
        self._last_id = 0
        self._records = Records(wire.ANSWER)
        self._transport: asyncio.WriteTransport | None = None
        self._is_ready = False
        self._is_closed = False
        self._ended: asyncio.Future[DeviceLost] = asyncio.get_running_loop().create_future()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def asked(self) -> int:
        """Images that the engine has not settled yet, those that nobody waits for among them."""
        return len(self._asked)

    async def start(self) -> None:
        """Wait until the engine is warm. Raises `EngineUnavailable` where it ends before that."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _Receiver(self), sock=self._connection)
        await self._ready

    async def run(self, item: Pixels, deadline: float) -> Scored:
        """As `Engine` says. The image's slot is free again once the engine has said that it is done with it."""
        segment = self._segment
        if not self._is_ready or self._transport is None or segment is None:
            raise EngineUnavailable(retry_after_seconds=retry_after_seconds(_BACK_SECONDS))
        if not self._free:
            raise Overloaded(retry_after_seconds=retry_after_seconds(self.state().device.batch_seconds))
        now = time.monotonic()
        if deadline <= now:
            raise DeadlineExceeded()
        slot = self._free.pop()
        np.copyto(segment.pixels(slot), item, casting="no")
        loop = asyncio.get_running_loop()
        self._last_id += 1
        request_id = self._last_id
        answer: asyncio.Future[Scored] = loop.create_future()
        self._asked[request_id] = _Asked(slot, answer)
        self._transport.write(wire.REQUEST.pack(wire.SUBMIT, slot, request_id, deadline))
        too_late = loop.call_later(deadline - now + _LATE_SECONDS, self._is_late, request_id)
        try:
            return await answer
        except asyncio.CancelledError:
            self._cancel(request_id)
            raise
        finally:
            too_late.cancel()
            # It holds its error, whose frames hold this one: the pixels would wait for the garbage collector.
            del answer

    def state(self) -> EngineState:
        reason = (
            "closed"
            if self._is_closed
            else "restarting"
            if self._ended.done()
            else None
            if self._is_ready
            else "warming"
        )
        return self._board.state(reason, time.monotonic())

    async def until_lost(self) -> DeviceLost:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Leave the engine: what was asked is failed, and cancelled there."""
        # One that has ended before is none that was left.
        self._is_closed = not self._ended.done()
        if self._transport is not None:
            self._transport.close()
        else:
            self._connection.close()
        self.has_ended()

    # --- what comes from the engine

    def connected(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def received(self, data: bytes) -> None:
        for kind, detail, batch_size, request_id, seconds, inference_seconds in self._records.feed(data):
            if kind == wire.READY:
                self._is_ready = True
                if not self._ready.done():
                    self._ready.set_result(None)
                continue
            asked = self._asked.pop(request_id)
            if not asked.answer.done():
                if kind == wire.SCORED and self._segment is not None:
                    scores = self._segment.scores(asked.slot).copy()
                    activation = wire.ACTIVATIONS[detail]
                    asked.answer.set_result(Scored(scores, activation, batch_size, seconds, inference_seconds))
                elif kind == wire.FAILED:
                    asked.answer.set_exception(_retryable(wire.unpack_error(detail, seconds)))
                else:  # cancelled there, and not from here
                    asked.answer.set_exception(EngineUnavailable())
            self._free.append(asked.slot)

    def has_ended(self) -> None:
        self._is_ready = False
        self._transport = None
        error = EngineUnavailable(retry_after_seconds=retry_after_seconds(_BACK_SECONDS))
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # asked for or not, it is no news
        for asked in self._asked.values():
            if not asked.answer.done():
                asked.answer.set_exception(EngineUnavailable(retry_after_seconds=retry_after_seconds(_BACK_SECONDS)))
        self._asked.clear()
        # Now, and not with the garbage collector.
        self._segment = None
        if not self._ended.done():
            self._ended.set_result(DeviceLost("The engine's process has ended"))

    def _is_late(self, request_id: int) -> None:
        asked = self._asked.get(request_id)
        if asked is not None and not asked.answer.done():
            asked.answer.set_exception(DeadlineExceeded())
            self._cancel(request_id)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._asked and self._transport is not None:
            self._transport.write(wire.REQUEST.pack(wire.CANCEL, 0, request_id, 0.0))


def _retryable(error: ServiceError) -> ServiceError:
    """An engine that gives up is followed by another one, about then."""
    if isinstance(error, EngineUnavailable) and error.retry_after_seconds is None:
        error.retry_after_seconds = retry_after_seconds(_BACK_SECONDS)
    return error


class _Asked:
    """One image that the engine has."""

    __slots__ = ("answer", "slot")

    def __init__(self, slot: int, answer: asyncio.Future[Scored]) -> None:
        self.slot = slot
        self.answer = answer


class _Receiver(asyncio.Protocol):
    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._engine.connected(cast("asyncio.WriteTransport", transport))

    def data_received(self, data: bytes) -> None:
        self._engine.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.has_ended()
