"""The device's forecast: the batches that run, their predicted ends, and the start and end of later batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from .cap import BatchCap
from .latency import LatencyModel

_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class DeviceForecast:
    """The device's state at one moment, and its speed. Times are in seconds."""

    free_in_seconds: float
    """Time until a slot is free; 0 if one is."""
    running: Sequence[float]
    """Deadlines (absolute monotonic times) of the images in running batches whose callers still wait."""
    slots: int
    """Batches that run at once."""
    batch_size: int
    """Images in a full batch."""
    batch_seconds: float
    """Upper estimate of the time for a full batch."""
    single_seconds: float
    """Upper estimate of the time for a single image."""

    @property
    def capacity(self) -> int:
        """Images that can be on the device at once."""
        return self.slots * self.batch_size

    def starts_in(self, position: int) -> float:
        """Seconds until the batch of an image starts. `position` images wait ahead of it."""
        return self.free_in_seconds + position // self.batch_size * self.batch_seconds / self.slots

    def ends_in(self, position: int, last: int | None = None) -> float:
        """Seconds until the batch of an image ends. The last image that waits has the position `last`.

        Images behind it fill its batch and make it slower. Without `last` nothing waits behind it.
        """
        behind = max(0, (last or 0) - position)
        images = min(position % self.batch_size + 1 + behind, self.batch_size)
        each = (self.batch_seconds - self.single_seconds) / max(1, self.batch_size - 1)
        return self.starts_in(position) + self.single_seconds + (images - 1) * each


class Forecast:
    """Predicts the device's times from the running batches and the measured latency."""

    def __init__(self, cap: BatchCap, concurrency: int) -> None:
        self.latency = LatencyModel()
        self.expected_ends: dict[asyncio.Task[None], float] = {}
        """The predicted end of each running batch."""
        self._cap = cap
        self._concurrency = concurrency

    @property
    def has_free_slot(self) -> bool:
        return len(self.expected_ends) < self._concurrency

    def now(self, now: float, running: Sequence[float]) -> DeviceForecast:
        """The forecast for admission at `now`, a time of the batcher's clock.

        `running` has the deadlines of the images on the device whose callers still wait.
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
        """Upper estimate of the time for a batch. About half of all batches take longer than predicted."""
        return _MARGIN * self.latency.predict(batch_size)
