"""When a newcomer's batch would start and end, and whom it would make late."""

from __future__ import annotations

import asyncio
import math
from typing import Generic, TypeVar

from .cap import BatchCap
from .latency import LatencyModel
from .queue import DeadlineQueue

Item = TypeVar("Item")
Result = TypeVar("Result")

_MARGIN = 1.1


class Forecast(Generic[Item, Result]):
    """Looks at the queue, the batches that run and how long batches take; changes none of them."""

    def __init__(self, queue: DeadlineQueue[Item, Result], cap: BatchCap, concurrency: int) -> None:
        self.latency = LatencyModel()
        self.expected_ends: dict[asyncio.Task[None], float] = {}
        """Of the batches that run: when each is expected to end."""
        self._queue = queue
        self._cap = cap
        self._concurrency = concurrency

    @property
    def has_free_slot(self) -> bool:
        return len(self.expected_ends) < self._concurrency

    def wait_seconds(self, now: float, deadline: float = math.inf) -> float:
        """How long an item with this deadline would wait for its batch to start, if it came now."""
        if self.has_free_slot and not self._queue:
            return 0.0
        batches = self._queue.ahead_of(deadline) // self._cap.now
        return (self._running_seconds(now) + batches * self.latency.predict(self._cap.now)) / self._concurrency

    def run_seconds(self) -> float:
        """How long its batch would take: alone if it could start at once, else filled by what comes meanwhile."""
        return self.at_most(1 if self.has_free_slot and not self._queue else self._cap.now)

    def delays_others_by(self, deadline: float, now: float) -> float:
        """By how much it would make one late that was accepted before and is less urgent."""
        later = self._queue.deadlines_after(deadline)
        begins = now + self._running_seconds(now) / self._concurrency
        run = self.at_most(self._cap.now)
        worst = 0.0
        for place, due in enumerate(later, len(self._queue) - len(later)):
            ends_now, ends_then = (
                begins + (1 + number // self._cap.now / self._concurrency) * run for number in (place, place + 1)
            )
            if ends_now <= due:
                worst = max(worst, ends_then - due)
        return worst

    def at_most(self, batch_size: int) -> float:
        """What to reckon with: half of all batches take longer than the prediction."""
        return _MARGIN * self.latency.predict(batch_size)

    def _running_seconds(self, now: float) -> float:
        return sum(max(0.0, end - now) for end in self.expected_ends.values())
