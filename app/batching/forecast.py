"""Forecast of the device: the batches that run now, their predicted times, and when the device is free."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .cap import BatchCap
from .latency import LatencyModel
from .schedule import DeviceForecast

_MARGIN = 1.1


class Forecast:
    """Looks at the batches that run and how long batches take; changes neither."""

    def __init__(self, cap: BatchCap, concurrency: int) -> None:
        self.latency = LatencyModel()
        self.expected_ends: dict[asyncio.Task[None], float] = {}
        """Of the batches that run: when each is expected to end."""
        self._cap = cap
        self._concurrency = concurrency

    @property
    def has_free_slot(self) -> bool:
        return len(self.expected_ends) < self._concurrency

    def now(self, now: float, running: Sequence[float]) -> DeviceForecast:
        """For admission: what runs, and how fast. `now` is a time of the batcher's clock, `running` has the deadlines
        of the images on the device that are still wanted.
        """
        left = [max(0.0, end - now) for end in self.expected_ends.values()]
        return DeviceForecast(
            free_in_seconds=0.0 if self.has_free_slot else sum(left) / self._concurrency,
            running=running,
            slots=self._concurrency,
            batch_size=self._cap.now,
            batch_seconds=self.at_most(self._cap.now),
            single_seconds=self.at_most(1),
        )

    def at_most(self, batch_size: int) -> float:
        """What to plan with: half of all batches take longer than the prediction."""
        return _MARGIN * self.latency.predict(batch_size)
