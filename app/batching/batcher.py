"""The batcher: takes single items, runs them in batches, and gives each caller its own result or its own error."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from ..errors import DeadlineExceeded, DeviceLost, Draining, EngineUnavailable, Overloaded
from .cap import BatchCap
from .forecast import DeviceForecast, Forecast
from .latency import LatencyModel
from .queue import Batched, DeadlineQueue, Waiting
from .runs import BatchRunner, Events
from .shedding import retry_after_seconds

Item = TypeVar("Item")
Result = TypeVar("Result")

RunBatch = Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]

# How long `close` waits for batches that run: whoever waited for their results has been answered otherwise by then.
_CLOSE_SECONDS = 1.0
# A prediction that only ever drops is never corrected: where no batch has ended for so long, items run all the same.
_TRIAL_AFTER_SECONDS = 1.0


class Batcher(Generic[Item, Result]):
    """Forms batches from concurrent `submit` calls and runs up to `concurrency` of them at once.

    The policy, in order (docs/batching.md gives the reasons):

    1. While a slot is free and something waits, a batch starts (`max_delay_seconds` 0), or starts as soon as it is
       full or its oldest item has waited that long.
    2. While all slots are busy the queue grows, up to `max_waiting` items and `max_waiting_bytes`; later items are
       refused with `Overloaded`. Whether an item can be answered in time is decided before it is decoded (`Schedule`).
    3. A batch takes the earliest deadlines first, up to `cap.now`, all with one `key`, and never so many that it would
       take longer than its first item has.
    4. Who left, whose deadline passed or cannot be met any more is dropped while a batch forms, and between the parts
       of one that failed; the device never sees it.
    5. A batch that fails is halved until the culprits fail alone; out of memory also lowers the cap (`runs`).
    6. A device that is beyond repair, or a batch that takes longer than `hang_seconds(size)`, ends the batcher: all
       that waits is answered `EngineUnavailable`, and `lost` says why.

    Driven by events on one event loop: there is no task that could die and no timer that runs without need.
    """

    def __init__(
        self,
        run_batch: RunBatch[Item, Result],
        *,
        max_batch_size: int,
        max_waiting: int,
        max_waiting_bytes: int | None = None,
        size_of: Callable[[Item], int] = lambda item: 0,
        concurrency: int = 1,
        max_delay_seconds: float = 0.0,
        latency: LatencyModel | None = None,
        hang_seconds: Callable[[int], float] = lambda size: math.inf,
        is_timed: Callable[[Hashable], bool] = lambda key: True,
        clock: Callable[[], float] = time.monotonic,
        events: Events | None = None,
    ) -> None:
        """`is_timed` says of a key whether its batches refine `latency`: others may take another time."""
        self.cap = BatchCap(max_batch_size)
        self.max_waiting = max_waiting
        self.max_delay_seconds = max_delay_seconds
        self._max_waiting_bytes = max_waiting_bytes
        self._size_of = size_of
        self._is_timed = is_timed
        self._clock = clock
        self._events = events or Events()
        self._queue: DeadlineQueue[Item, Result] = DeadlineQueue()
        self.forecast = Forecast(self.cap, concurrency)
        self._batches: dict[asyncio.Task[None], Sequence[Waiting[Item, Result]]] = {}
        self._delay_timer: asyncio.TimerHandle | None = None
        self._last_end = -math.inf
        self._closed = False
        self.lost: DeviceLost | None = None
        """Why the device is beyond repair; None while it is not."""
        self._runner: BatchRunner[Item, Result] = BatchRunner(
            run_batch, self.cap, hang_seconds, self._can_make_it, self._observe, clock, self._events
        )
        self.expect(latency or LatencyModel())

    def expect(self, latency: LatencyModel) -> None:
        """What is known of how long batches take; from here on it is refined."""
        self.forecast.latency = latency

    @property
    def latency(self) -> LatencyModel:
        return self.forecast.latency

    @property
    def waiting(self) -> int:
        """Items in the queue whose callers still wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Batches that run now."""
        return len(self._batches)

    def device(self) -> DeviceForecast:
        """What admission needs to know of the device."""
        # Whose caller has left holds no reservation any more: it must not be taken for one that does.
        running = (waiting for batch in self._batches.values() for waiting in batch)
        wanted = [waiting.deadline for waiting in running if not waiting.answer.done()]
        return self.forecast.now(self._clock(), wanted)

    async def submit(self, item: Item, *, deadline: float, key: Hashable = None) -> Batched[Result]:
        """Wait for this item's own result.

        `deadline` is an absolute time of the batcher's clock. Raises `Overloaded` where the queue is full,
        `DeadlineExceeded` where it passes, `Draining` after `close`, `EngineUnavailable`
        where the device is lost, and whatever `run_batch` raised for this item. Cancelling the call takes the item out
        of the queue.
        """
        self._check_open()
        now = self._clock()
        size_bytes = self._size_of(item)
        self._check_room(size_bytes)
        loop = asyncio.get_running_loop()
        waiting = self._queue.put(
            item, deadline=deadline, key=key, now=now, size_bytes=size_bytes, answer=loop.create_future()
        )
        expiry = loop.call_later(max(0.0, deadline - now), self._expire, waiting)
        # In the next round of the loop, so that everything that arrives in this one can share a batch.
        loop.call_soon(self._start_batches)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            # A caller that leaves makes room at once.
            if self._queue.forget(waiting):
                self._events.dropped("client_gone")
            raise
        finally:
            expiry.cancel()
            # Its answer holds an error, whose frames hold this one: the item would wait for the garbage collector.
            del waiting

    async def close(self) -> bool:
        """Refuse what comes from now on, fail what still waits, and let running batches end.

        False where one did not end within a second.
        """
        self._closed = True
        self._fail_queue(Draining)
        if self._batches and self.lost is None:
            await asyncio.wait(list(self._batches), timeout=_CLOSE_SECONDS)
        return not self._batches

    def _observe(self, key: Hashable, batch_size: int, seconds: float) -> None:
        if self._is_timed(key):
            self.latency.observe(batch_size, seconds)

    def _check_open(self) -> None:
        if self.lost is not None:
            raise EngineUnavailable()
        if self._closed:
            raise Draining()

    def _check_room(self, size_bytes: int) -> None:
        too_many_bytes = self._max_waiting_bytes is not None and (
            self._queue.size_bytes + size_bytes > self._max_waiting_bytes
        )
        if len(self._queue) >= self.max_waiting or too_many_bytes:
            self._events.dropped("overloaded")
            raise Overloaded(retry_after_seconds=retry_after_seconds(self.latency.predict(self.cap.now)))

    def _expire(self, waiting: Waiting[Item, Result]) -> None:
        if not waiting.answer.done():
            if self._queue.forget(waiting):
                self._events.dropped("deadline")
            waiting.answer.set_exception(DeadlineExceeded())

    def _can_make_it(self, waiting: Waiting[Item, Result]) -> bool:
        """Whether an item is still wanted and would be done in time if it ran now; what is not is answered."""
        if waiting.answer.done():
            # Its caller was cancelled and has not run since.
            if self._queue.forget(waiting):
                self._events.dropped("client_gone")
            return False
        now = self._clock()
        if waiting.deadline <= now:
            self._expire(waiting)
            return False
        is_known = now - self._last_end < _TRIAL_AFTER_SECONDS
        if now + self.forecast.at_most(1) > waiting.deadline and is_known:
            self._expire(waiting)
            return False
        return True

    def _start_batches(self) -> None:
        while self._queue and self.forecast.has_free_slot and not self._worth_waiting():
            batch = self._take_batch()
            if batch:
                task = asyncio.get_running_loop().create_task(self._runner.run(batch))
                self.forecast.expected_ends[task] = self._clock() + self.latency.predict(len(batch))
                self._batches[task] = batch
                task.add_done_callback(self._batch_done)

    def _worth_waiting(self) -> bool:
        """Whether a free slot should wait for more items; if so, a timer ends the wait."""
        if self.max_delay_seconds <= 0 or len(self._queue) >= self.cap.now:
            return False
        oldest = min(waiting.enqueued_at for waiting in self._queue)
        remaining = oldest + self.max_delay_seconds - self._clock()
        if remaining <= 0:
            return False
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        self._delay_timer = asyncio.get_running_loop().call_later(remaining, self._start_batches)
        return True

    def _take_batch(self) -> list[Waiting[Item, Result]]:
        """The earliest deadlines that share one key, out of the queue."""
        batch: list[Waiting[Item, Result]] = []
        for waiting in self._queue:
            if len(batch) == self.cap.now:
                break
            if not self._can_make_it(waiting):
                continue
            if batch and waiting.key != batch[0].key:
                continue
            if batch and self._clock() + self.forecast.at_most(len(batch) + 1) > batch[0].deadline:
                break
            self._queue.leave(waiting)
            batch.append(waiting)
        return batch

    def _batch_done(self, task: asyncio.Task[None]) -> None:
        self._last_end = self._clock()
        del self.forecast.expected_ends[task]
        del self._batches[task]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, DeviceLost):
            self._break_down(error)
        self._start_batches()

    def _break_down(self, error: DeviceLost) -> None:
        """Nothing that waits, here or on the device, will have a result."""
        self.lost = self.lost or error
        self._fail_queue(EngineUnavailable)
        for batch in self._batches.values():
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(EngineUnavailable())
        self._events.lost(error)

    def _fail_queue(self, error: type[Exception]) -> None:
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        for waiting in self._queue:
            self._queue.forget(waiting)
            if not waiting.answer.done():
                waiting.answer.set_exception(error())
