"""Decoding in threads of this process: nothing is copied, and what hangs can be counted but not ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ImageTooComplex, ServiceError
from ..threads import Threads, in_a_thread
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe, too_slow
from .decode import DecodeLimits, decode, image_format
from .resample import usable_kernel
from .slots import Slots, SlottedDecoder


class ThreadDecoder(SlottedDecoder):
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
        super().__init__(slots, Slots(slots, max_waiting, clock))
        self._limits = limits
        self._mode: DecodeMode = mode
        self._spare = spare
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._clock = clock
        # Of one thread each, so that the one that hangs is known.
        self._idle: list[Threads] = []
        self._closed = False

    async def start(self) -> None:
        """Check the compiled resize. A thread starts in microseconds, when it is needed."""
        await in_a_thread(usable_kernel, "decode")

    async def decode(self, data: bytes, preprocessing: Preprocessing, deadline: float) -> Pixels:
        """As `Decoder` says. A decode that has begun runs to its end, also when its caller has left."""
        return await self._slots.run(lambda outcome: self._begin(data, preprocessing, outcome), deadline)

    async def close(self) -> None:
        """Refuse what waits. What runs ends by itself; its threads are daemons, which hold up no exit."""
        self._closed = True
        self._slots.close()
        while self._idle:
            self._idle.pop().stop()

    def _begin(self, data: bytes, preprocessing: Preprocessing, outcome: asyncio.Future[Pixels]) -> None:
        loop = asyncio.get_running_loop()
        thread = self._idle.pop() if self._idle else Threads(1, "decode")
        work = _Work(outcome, thread, image_format(data), self._clock())
        limit = loop.call_later(self._timeout_seconds, self._is_over_time, work)

        def call() -> None:
            pixels: Pixels | None = None
            error: BaseException | None = None
            try:
                pixels = decode(data, preprocessing, self._limits, self._mode)
            except ServiceError as told:
                # Without its frames, which hold the image: what it says is all that is wanted of it.
                error = told
                told.__traceback__ = told.__cause__ = told.__context__ = None
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(ended, pixels, error)

        def ended(pixels: Pixels | None, error: BaseException | None) -> None:
            limit.cancel()
            self._has_ended(work, pixels, error)

        thread.begin(call)

    def _is_over_time(self, work: _Work) -> None:
        work.is_lost = True
        self.lost += 1
        if self._spare:
            self._spare -= 1
            work.is_replaced = True
            self._slots.give_back()
        else:
            self._slots.lose()
        if not work.outcome.done():
            work.outcome.set_exception(ImageTooComplex(too_slow(self._timeout_seconds)))

    def _has_ended(self, work: _Work, pixels: Pixels | None, error: BaseException | None) -> None:
        # First the thread, for whoever has the slot next.
        if self._closed or len(self._idle) >= self.slots:
            work.thread.stop()
        else:
            self._idle.append(work.thread)
        self.lost -= work.is_lost
        if work.is_replaced:
            self._spare += 1
        elif work.is_lost:
            self._slots.regain()
        else:
            self._slots.give_back()
        seconds = self._clock() - work.began
        if not work.is_lost:
            self._slots.took(seconds)
        if pixels is not None and work.image_format is not None:
            self._observe(work.image_format, seconds)
        if work.outcome.done():
            return
        if pixels is not None:
            work.outcome.set_result(pixels)
        elif error is not None:
            work.outcome.set_exception(error)


@dataclass(slots=True)
class _Work:
    outcome: asyncio.Future[Pixels]
    thread: Threads
    image_format: str | None
    began: float
    is_lost: bool = False
    is_replaced: bool = False
