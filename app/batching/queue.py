"""What waits for a batch: earliest deadline first, bounded in number and bytes, and left at once by who leaves."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

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
class Waiting(Generic[Item, Result]):
    """An item on its way. Ordered by deadline, then by arrival."""

    deadline: float
    arrival: int
    item: Item = field(compare=False)
    key: Hashable = field(compare=False)
    enqueued_at: float = field(compare=False)
    answer: asyncio.Future[Batched[Result]] = field(compare=False)
    size_bytes: int = field(compare=False)
    queued: bool = field(default=True, compare=False)


class DeadlineQueue(Generic[Item, Result]):
    """A heap in which who left is a husk without its item, skipped when its turn comes."""

    def __init__(self) -> None:
        self.size_bytes = 0
        # In order, so that whoever comes learns its place without a look at each: forecasts are asked for every image.
        self._deadlines: list[float] = []
        self._heap: list[Waiting[Item, Result]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        """Items whose callers still wait."""
        return len(self._deadlines)

    def __iter__(self) -> Iterator[Waiting[Item, Result]]:
        """In no order."""
        return (waiting for waiting in self._heap if waiting.queued)

    def put(
        self,
        item: Item,
        *,
        deadline: float,
        key: Hashable,
        now: float,
        size_bytes: int,
        answer: asyncio.Future[Batched[Result]],
    ) -> Waiting[Item, Result]:
        waiting = Waiting(deadline, next(self._arrivals), item, key, now, answer, size_bytes)
        heapq.heappush(self._heap, waiting)
        insort(self._deadlines, deadline)
        self.size_bytes += size_bytes
        return waiting

    def put_back(self, waiting: Waiting[Item, Result]) -> None:
        """One that `pop` gave and that has not left."""
        heapq.heappush(self._heap, waiting)

    def pop(self) -> Waiting[Item, Result] | None:
        """The most urgent, which has not left yet: `leave` or `put_back` it. None where nothing waits."""
        while self._heap:
            waiting = heapq.heappop(self._heap)
            if waiting.queued:
                return waiting
        return None

    def leave(self, waiting: Waiting[Item, Result]) -> bool:
        """Take an item out; False where it had left already."""
        left, waiting.queued = waiting.queued, False
        if left:
            del self._deadlines[bisect_left(self._deadlines, waiting.deadline)]
            self.size_bytes -= waiting.size_bytes
        return left

    def forget(self, waiting: Waiting[Item, Result]) -> bool:
        """As `leave`, for one that goes nowhere: its husk holds no pixels."""
        left = self.leave(waiting)
        if left:
            waiting.item = cast("Item", None)
        return left

    def ahead_of(self, deadline: float) -> int:
        """How many are at least as urgent."""
        return bisect_right(self._deadlines, deadline)

    def deadlines_after(self, deadline: float) -> list[float]:
        """Of those that are less urgent, in order."""
        return self._deadlines[bisect_right(self._deadlines, deadline) :]
