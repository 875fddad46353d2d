"""The queue of a batcher: earliest deadline first, bounded in items and bytes, with removal of cancelled items."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")

_deadline = attrgetter("deadline")


@dataclass(frozen=True, slots=True)
class Batched(Generic[Result]):
    """One caller's result and how it came about; times in seconds."""

    value: Result
    batch_size: int
    queue_seconds: float
    inference_seconds: float


@dataclass(slots=True, eq=False)
class Waiting(Generic[Item, Result]):
    """An item on its way."""

    deadline: float
    item: Item
    key: Hashable
    enqueued_at: float
    answer: asyncio.Future[Batched[Result]]
    size_bytes: int
    queued: bool = True


class DeadlineQueue(Generic[Item, Result]):
    """A list in the order of deadlines, and of arrival where these are equal.

    Items leave from anywhere: in a heap that is a look at all of them. To keep the list in order moves some hundred
    pointers.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._waiting: list[Waiting[Item, Result]] = []

    def __len__(self) -> int:
        """Items whose callers still wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[Item, Result]]:
        """The most urgent first, as they wait now: they may leave meanwhile."""
        return iter(self._waiting.copy())

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
        waiting = Waiting(deadline, item, key, now, answer, size_bytes)
        self._waiting.insert(self.ahead_of(deadline), waiting)
        self.size_bytes += size_bytes
        return waiting

    def leave(self, waiting: Waiting[Item, Result]) -> bool:
        """Take an item out; False where it had left already."""
        if not waiting.queued:
            return False
        waiting.queued = False
        del self._waiting[self._waiting.index(waiting, bisect_left(self._waiting, waiting.deadline, key=_deadline))]
        self.size_bytes -= waiting.size_bytes
        return True

    def forget(self, waiting: Waiting[Item, Result]) -> bool:
        """As `leave`, for one that goes nowhere: whoever still holds it holds no pixels."""
        left = self.leave(waiting)
        if left:
            waiting.item = cast("Item", None)
        return left

    def ahead_of(self, deadline: float) -> int:
        """How many are at least as urgent."""
        return bisect_right(self._waiting, deadline, key=_deadline)
