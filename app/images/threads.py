"""Decoding in threads of this process: nothing is copied, and what hangs can be counted but not ended.

The threads take their images from the queue by themselves. Were each handed its next one by the event loop, it would
stand still from the end of one image until the loop has its turn, which is the busiest thread of a service without a
GPU: on two cores that was a quarter of the throughput.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import DeadlineExceeded, EngineUnavailable, ImageTooComplex, Overloaded, ServiceError
from ..threads import in_a_thread
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe, too_slow
from .decode import DecodeLimits, decode, image_format
from .resample import usable_kernel
from .slots import ALL_LOST, CLOSED, Usual

T = TypeVar("T")


class ThreadDecoder:
    """A `Decoder` of threads. Pillow releases the interpreter lock while it decodes and resizes.

    A thread cannot be ended from outside. At the time limit its caller is answered and its slot is lost: it holds up to
    `DecodePlan.slot_bytes` for as long as it runs. Where the memory set aside holds more images than there are slots,
    `spare` is how many more, and each lost slot is replaced by a new one while there are spares; after that every lost
    slot is one less, and with the last everything is refused at once instead of waiting for nothing. A decode that ends
    after all gives its slot, or its spare, back.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        *,
        slots: int,
        spare: int = 0,
        max_waiting: int,
        timeout_seconds: float,
        mode: DecodeMode = "exact",
        observe: Observe = lambda image_format, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots = slots
        self.lost = 0
        self.usable = slots
        self._limits = limits
        self._mode: DecodeMode = mode
        self._spare = spare
        self._max_waiting = max_waiting
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._clock = clock
        self._usual = Usual()
        self._refusal = ""
        self._stuck_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Whoever takes a piece of work out of one of these two has it: a thread, to decode it or as decoded, or the
        # loop, because its caller has left or its time is over. The interpreter's lock makes that one step.
        self._queue: OrderedDict[_Work[Any], None] = OrderedDict()
        self._running: dict[_Work[Any], None] = {}
        # One for each piece of work that was put into the queue, also of those whose callers have left.
        self._calls: SimpleQueue[bool] = SimpleQueue()
        # Threads that will take another image.
        self._serving = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def predicted_wait_seconds(self) -> float:
        ahead = self._ahead()
        return 0.0 if ahead < 0 else (ahead + 1) * self._usual.seconds / max(1, self.usable)

    @property
    def stuck_seconds(self) -> float:
        return 0.0 if self._stuck_since is None else self._clock() - self._stuck_since

    async def start(self) -> None:
        """Check the compiled resize. A thread starts in microseconds, when it is needed."""
        await in_a_thread(usable_kernel, "decode")

    async def decode(self, data: bytes, preprocessing: Preprocessing, deadline: float) -> Pixels:
        """As `Decoder` says. A decode that has begun runs to its end, also when its caller has left."""
        return await self.run(lambda: decode(data, preprocessing, self._limits, self._mode), data, deadline)

    async def run(self, make: Callable[[], T], data: bytes, deadline: float) -> T:
        """What `make` makes of `data`, under all that `decode` is under. Only pixels are observed."""
        if self._refusal or not self.usable:
            raise EngineUnavailable(self._refusal or ALL_LOST, retry_after_seconds=5.0)
        left = deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded()
        if self._ahead() >= self._max_waiting:
            raise Overloaded(retry_after_seconds=1.0)
        loop = asyncio.get_running_loop()
        self._fill(loop)
        work: _Work[T] = _Work(data, make, loop.create_future())
        self._queue[work] = None
        self._calls.put(True)
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_seconds, self._look_for_hangs)
        too_late = loop.call_later(left, _is_late, work)
        try:
            return await work.outcome
        finally:
            too_late.cancel()
            self._queue.pop(work, None)
            # It holds its error, whose frames hold this one: the image would wait for the garbage collector.
            del work

    async def close(self) -> None:
        """Refuse what waits. What runs ends by itself; its threads are daemons, which hold up no exit."""
        self._refusal = CLOSED
        self._refuse_all(CLOSED)
        if self._timer is not None:
            self._timer.cancel()
        for _ in range(self._serving):
            self._calls.put(False)

    def _ahead(self) -> int:
        """How many images wait beside those that have a slot, or will in a moment; below 0 where a slot is free."""
        return len(self._queue) + len(self._running) - self.usable

    def _fill(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread for each usable slot. Raises `RuntimeError` where the system has room for none."""
        while self._serving < self.usable:
            try:
                threading.Thread(target=self._serve, args=(loop,), name="decode", daemon=True).start()
            except RuntimeError:
                if not self._serving:
                    raise
                return  # the next image asks again
            self._serving += 1

    # --- on the threads

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        is_lost = False
        while not is_lost and self._calls.get():
            try:
                work, _ = self._queue.popitem(last=False)
            except KeyError:
                continue  # its caller has left
            work.began = self._clock()
            self._running[work] = None
            made, error = _made_of(work)
            work.ended = self._clock()
            is_lost = self._running.pop(work, _GONE) is _GONE
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._has_ended, work, made, error)
            # While the thread waits it holds nobody's image.
            del work, made, error

    # --- on the event loop

    def _has_ended(self, work: _Work[T], made: T | None, error: BaseException | None) -> None:
        seconds = work.ended - work.began
        if not work.is_lost:
            self._usual.took(seconds)
        else:
            self.lost -= 1
            if work.is_replaced:
                self._spare += 1
            else:
                self.usable += 1
                self._stuck_since = None
        known = image_format(work.data) if isinstance(made, np.ndarray) else None
        if known is not None:
            self._observe(known, seconds)
        if work.outcome.done():
            return
        if made is not None:
            work.outcome.set_result(made)
        elif error is not None:
            work.outcome.set_exception(error)

    def _look_for_hangs(self) -> None:
        """Count what is over its time limit as lost, and come back when the next one may be."""
        now = self._clock()
        for work in list(self._running):
            if now - work.began >= self._timeout_seconds and self._running.pop(work, _GONE) is not _GONE:
                self._has_hung(work)
        self._timer = None
        running = list(self._running)
        if running or self._queue:
            soonest = min((work.began for work in running), default=now) + self._timeout_seconds
            self._timer = asyncio.get_running_loop().call_later(soonest - now, self._look_for_hangs)

    def _has_hung(self, work: _Work[Any]) -> None:
        work.is_lost = True
        self.lost += 1
        self._serving -= 1
        if self._spare:
            self._spare -= 1
            work.is_replaced = True
        else:
            self.usable -= 1
        _fail(work.outcome, ImageTooComplex(too_slow(self._timeout_seconds)))
        if not self.usable:
            self._stuck_since = self._clock()
            self._refuse_all(ALL_LOST)
        elif self._queue:
            with suppress(RuntimeError):  # no room for a thread: the next image asks again
                self._fill(asyncio.get_running_loop())

    def _refuse_all(self, reason: str) -> None:
        while self._queue:
            with suppress(KeyError):  # a thread was quicker
                work, _ = self._queue.popitem(last=False)
                _fail(work.outcome, EngineUnavailable(reason, retry_after_seconds=5.0))


# No result of `pop`, which gives None for a work that is there.
_GONE = object()


def _made_of(work: _Work[T]) -> tuple[T | None, BaseException | None]:
    try:
        return work.make(), None
    except ServiceError as told:
        # Without its frames, which hold the image: what it says is all that is wanted of it.
        told.__traceback__ = told.__cause__ = told.__context__ = None
        return None, told
    except BaseException as raised:
        return None, raised


def _fail(outcome: asyncio.Future[Any], error: ServiceError) -> None:
    if not outcome.done():
        outcome.set_exception(error)


def _is_late(work: _Work[Any]) -> None:
    _fail(work.outcome, DeadlineExceeded())


@dataclass(slots=True, eq=False)
class _Work(Generic[T]):
    """One image; `began` and `ended` are monotonic times."""

    data: bytes
    make: Callable[[], T]
    outcome: asyncio.Future[T]
    began: float = 0.0
    ended: float = 0.0
    is_lost: bool = False
    is_replaced: bool = False
