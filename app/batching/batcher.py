"""The batcher: work-conserving, bounded, each caller gets its own answer or its own error."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..errors import DeadlineExceeded, Draining, Internal, Overloaded

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Batched(Generic[Result]):
    """One caller's result and how it came about; times in seconds."""

    value: Result
    batch_size: int
    queue_seconds: float
    inference_seconds: float


@dataclass(slots=True, order=True)
class _Waiting(Generic[Item, Result]):
    """An item on its way. Ordered by deadline, then by arrival."""

    deadline: float
    arrival: int
    item: Item = field(compare=False)
    key: Hashable = field(compare=False)
    enqueued_at: float = field(compare=False)
    answer: asyncio.Future[Batched[Result]] = field(compare=False)
    queued: bool = field(default=True, compare=False)


RunBatch = Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]


class Batcher(Generic[Item, Result]):
    """Forms batches from concurrent `submit` calls and runs up to `concurrency` of them at once.

    The policy, in order:

    1. While a slot is free and something waits, a batch starts (`max_delay_seconds` 0), or starts as soon as it is
       full or its oldest item has waited that long.
    2. While all slots are busy the queue grows, up to `max_waiting`; what comes then is refused with `Overloaded`.
    3. A batch takes the earliest deadlines first, up to `max_batch_size`, all with one `key`.
    4. A caller that left or whose deadline passed is dropped while a batch forms; the device never sees it.
    5. `run_batch` must give one result an item. A failure, or a wrong number of results, fails the items of that batch
       and no other.

    Driven by events on one event loop: there is no task that could die and no timer that runs without need.
    """

    def __init__(
        self,
        run_batch: RunBatch[Item, Result],
        *,
        max_batch_size: int,
        max_waiting: int,
        concurrency: int = 1,
        max_delay_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_drop: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_waiting = max_waiting
        self.concurrency = concurrency
        self.max_delay_seconds = max_delay_seconds
        self._run_batch = run_batch
        self._clock = clock
        self._on_drop = on_drop
        self._heap: list[_Waiting[Item, Result]] = []
        self._waiting = 0
        self._arrivals = itertools.count()
        self._running: set[asyncio.Task[None]] = set()
        self._delay_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Items in the queue whose callers still wait."""
        return self._waiting

    @property
    def running(self) -> int:
        """Batches that run now."""
        return len(self._running)

    async def submit(self, item: Item, *, deadline: float, key: Hashable = None) -> Batched[Result]:
        """Wait for this item's own result.

        `deadline` is an absolute time of the batcher's clock. Raises `Overloaded` where the queue is full,
        `DeadlineExceeded` where the deadline passes first, `Draining` after `close`, and whatever `run_batch` raised
        for this item's batch. Cancelling the call takes the item out of the queue.
        """
        if self._closed:
            raise Draining()
        if self._waiting >= self.max_waiting:
            self._on_drop("overloaded")
            raise Overloaded(retry_after_seconds=1.0)
        loop = asyncio.get_running_loop()
        now = self._clock()
        waiting: _Waiting[Item, Result] = _Waiting(deadline, next(self._arrivals), item, key, now, loop.create_future())
        heapq.heappush(self._heap, waiting)
        self._waiting += 1
        expiry = loop.call_later(max(0.0, deadline - now), self._expire, waiting)
        # In the next round of the loop, so that everything that arrives in this one can share a batch.
        loop.call_soon(self._start_batches)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            # A caller that leaves makes room at once; its husk in the heap is skipped when a batch forms.
            if self._leave_queue(waiting):
                self._on_drop("client_gone")
            raise
        finally:
            expiry.cancel()

    async def close(self) -> None:
        """Refuse what comes from now on, fail what still waits, and let running batches end."""
        self._closed = True
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        for waiting in self._heap:
            if self._leave_queue(waiting):
                waiting.answer.set_exception(Draining())
        self._heap.clear()
        if self._running:
            await asyncio.wait(self._running)

    def _leave_queue(self, waiting: _Waiting[Item, Result]) -> bool:
        """Take an item out of the queue; False where it had left already."""
        left, waiting.queued = waiting.queued, False
        self._waiting -= left
        return left

    def _expire(self, waiting: _Waiting[Item, Result]) -> None:
        if not waiting.answer.done():
            if self._leave_queue(waiting):
                self._on_drop("deadline")
            waiting.answer.set_exception(DeadlineExceeded())

    def _start_batches(self) -> None:
        while self._waiting and len(self._running) < self.concurrency and not self._worth_waiting():
            batch = self._take_batch()
            if batch:
                task = asyncio.get_running_loop().create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._batch_done)

    def _worth_waiting(self) -> bool:
        """Whether a free slot should wait for more items; if so, a timer ends the wait."""
        if self.max_delay_seconds <= 0 or self._waiting >= self.max_batch_size:
            return False
        oldest = min(waiting.enqueued_at for waiting in self._heap if waiting.queued)
        remaining = oldest + self.max_delay_seconds - self._clock()
        if remaining <= 0:
            return False
        if self._delay_timer is not None:
            self._delay_timer.cancel()
        self._delay_timer = asyncio.get_running_loop().call_later(remaining, self._start_batches)
        return True

    def _take_batch(self) -> list[_Waiting[Item, Result]]:
        """The earliest deadlines that share one key, out of the queue."""
        batch: list[_Waiting[Item, Result]] = []
        others: list[_Waiting[Item, Result]] = []
        while self._heap and len(batch) < self.max_batch_size:
            waiting = heapq.heappop(self._heap)
            if not waiting.queued:
                continue
            if waiting.deadline <= self._clock():
                self._expire(waiting)
            elif batch and waiting.key != batch[0].key:
                others.append(waiting)
            else:
                self._leave_queue(waiting)
                batch.append(waiting)
        for waiting in others:
            heapq.heappush(self._heap, waiting)
        return batch

    async def _run(self, batch: list[_Waiting[Item, Result]]) -> None:
        started_at = self._clock()
        try:
            results = await self._run_batch([waiting.item for waiting in batch])
            if len(results) != len(batch):
                logger.error("A batch of %d came back with %d results; all of it is failed.", len(batch), len(results))
                raise Internal()
        except Exception as error:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        finished_at = self._clock()
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(
                    Batched(result, len(batch), started_at - waiting.enqueued_at, finished_at - started_at)
                )

    def _batch_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start_batches()
