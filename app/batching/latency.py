"""The latency model of a batch: seconds = a + b · size, fitted to the batches that have run."""

from __future__ import annotations

from collections.abc import Mapping

# How much of what is known each batch leaves: about the last fifty count.
_KEPT = 0.98
# What the warm-up measured counts as much as this many batches, for each size.
_SEED_WEIGHT = 5.0
# A batch during which the machine was elsewhere says little about the next one.
_MOST_TIMES_EXPECTED = 8.0


class LatencyModel:
    """A line through (batch size, seconds), by least squares in which older batches count less and less.

    Neither term is ever negative: the time of no batch falls with its size.
    """

    def __init__(self, measured: Mapping[int, float] | None = None) -> None:
        """`measured`: batch size → seconds. Without any, every batch is expected to take no time until one has run."""
        self.alpha = 0.0
        """Seconds that a batch takes whatever its size."""
        self.beta = 0.0
        """Seconds that each image adds."""
        self._weight = self._b = self._bb = self._t = self._bt = 0.0
        for size, seconds in (measured or {}).items():
            self._add(size, seconds, _SEED_WEIGHT)
        self._fit()

    def predict(self, batch_size: int) -> float:
        """Seconds that a batch of `batch_size` is expected to take."""
        return self.alpha + self.beta * batch_size

    def observe(self, batch_size: int, seconds: float) -> None:
        """A batch of `batch_size` took `seconds`."""
        expected = self.predict(batch_size)
        if expected > 0:
            seconds = min(seconds, _MOST_TIMES_EXPECTED * expected)
        self._weight *= _KEPT
        self._b *= _KEPT
        self._bb *= _KEPT
        self._t *= _KEPT
        self._bt *= _KEPT
        self._add(batch_size, seconds, 1.0)
        self._fit()

    def _add(self, size: int, seconds: float, weight: float) -> None:
        self._weight += weight
        self._b += weight * size
        self._bb += weight * size * size
        self._t += weight * seconds
        self._bt += weight * size * seconds

    def _fit(self) -> None:
        if not self._weight:
            return
        mean_b, mean_t = self._b / self._weight, self._t / self._weight
        variance = self._bb / self._weight - mean_b * mean_b
        steepest = mean_t / mean_b
        if variance > 1e-9 * mean_b * mean_b:
            slope = (self._bt / self._weight - mean_b * mean_t) / variance
        else:
            # One size alone tells a sum and not its terms: the terms keep their ratio.
            expected = self.predict(1) and self.alpha + self.beta * mean_b
            slope = self.beta * mean_t / expected if expected else steepest
        self.beta = min(max(slope, 0.0), steepest)
        self.alpha = mean_t - self.beta * mean_b
