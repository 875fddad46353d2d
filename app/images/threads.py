"""The decoder in threads of this process: no copies; a hung decode is detected and counted but cannot be ended.

The threads take their images from the queue by themselves. Were each handed its next one by the event loop, it would
stand still from the end of one image until the loop has its turn, which is the busiest thread of a service without a
GPU: on two cores that was a quarter of the throughput.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

from ..errors import ImageTooComplex, ServiceError
from ..threads import in_a_thread
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe, too_slow
from .decode import DecodeLimits, decode
from .queued import ALL_LOST, QueuedDecoder, Work, fail
from .resample import usable_kernel


class ThreadDecoder(QueuedDecoder["_Work"]):
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
        super().__init__(slots, max_waiting, timeout_seconds, observe, clock, limits.most_megapixels)
        self._limits = limits
        self._mode: DecodeMode = mode
        self._spare = spare
        self._stuck_since: float | None = None
        # What takes a piece of work out of the queue, or out of this, has it: a thread, to decode it or as decoded, or
        # the loop, because its caller has left or its time is over.
        self._running: dict[_Work, None] = {}
        # One for each piece of work that was put into the queue, also of those whose callers have left.
        self._calls: SimpleQueue[bool] = SimpleQueue()
        # Threads that will take another image.
        self._serving = 0

    @property
    def stuck_seconds(self) -> float:
        return 0.0 if self._stuck_since is None else self._clock() - self._stuck_since

    async def start(self) -> None:
        """Check the compiled resize. A thread starts in microseconds, when it is needed."""
        await in_a_thread(usable_kernel, "decode")

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, deadline: float, batch: Hashable | None = None
    ) -> Pixels:
        """As `Decoder` says. A decode that has begun runs to its end, also when its caller has left."""
        # Nothing here holds the future: its error's frames hold this one, and with it the image.
        return await self._run(
            _Work(data, preprocessing, asyncio.get_running_loop().create_future(), *self._work_of(data, batch)),
            deadline,
        )

    async def close(self) -> None:
        """Refuse what waits. What runs ends by itself; its threads are daemons, which hold up no exit."""
        self._stop_taking()
        for _ in range(self._serving):
            self._calls.put(False)

    def _begin(self) -> None:
        self._calls.put(True)
        self._fill()

    def _begun(self) -> Iterable[_Work]:
        return list(self._running)

    def _fill(self) -> None:
        """A thread for each usable slot. Raises `RuntimeError` where the system has room for none."""
        while self._serving < self.usable:
            loop = asyncio.get_running_loop()
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
            work = self._queue.take(self._has_begun)
            if work is None:
                continue  # its caller has left
            if work.outcome.done():
                self._running.pop(work, None)
                del work  # its caller is leaving
                continue
            pixels, error = self._decoded(work)
            seconds = self._clock() - work.began
            # Before the next one is taken, which the event loop may be too late for.
            self._charge(work, seconds)
            is_lost = self._running.pop(work, _GONE) is _GONE
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._has_ended, work, pixels, error, seconds)
            # While the thread waits it holds nobody's image.
            del work, pixels, error

    def _has_begun(self, work: _Work) -> None:
        """Called while the queue is locked: a work in neither the queue nor `_running` could hang undetected."""
        work.began = self._clock()
        self._running[work] = None

    def _decoded(self, work: _Work) -> tuple[Pixels | None, BaseException | None]:
        try:
            return decode(work.data, work.preprocessing, self._limits, self._mode), None
        except ServiceError as told:
            # Without its frames, which hold the image: what it says is all that is wanted of it.
            told.__traceback__ = told.__cause__ = told.__context__ = None
            return None, told
        except BaseException as raised:
            return None, raised

    # --- on the event loop

    def _has_ended(self, work: _Work, pixels: Pixels | None, error: BaseException | None, seconds: float) -> None:
        if work.is_lost:
            self.lost -= 1
            if work.is_replaced:
                self._spare += 1
            else:
                self.usable += 1
                self._stuck_since = None
        self._settle(work, pixels, error, seconds)

    def _has_hung(self, work: _Work) -> None:
        if self._running.pop(work, _GONE) is _GONE:
            return  # it has just ended
        work.is_lost = True
        self.lost += 1
        self._serving -= 1
        if self._spare:
            self._spare -= 1
            work.is_replaced = True
        else:
            self.usable -= 1
        fail(work, ImageTooComplex(too_slow(self._timeout_seconds)))
        if not self.usable:
            self._stuck_since = self._clock()
            self._refuse_all(ALL_LOST)
        elif self._queue:
            with suppress(RuntimeError):  # no room for a thread: the next image asks again
                self._fill()


# No result of `pop`, which gives None for a work that is there.
_GONE = object()


@dataclass(slots=True, eq=False, kw_only=True)
class _Work(Work):
    is_lost: bool = False
    is_replaced: bool = False
