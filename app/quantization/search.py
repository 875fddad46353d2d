"""The choice of layers that stay in float32, by the measured error of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..agreement import Agreement
from ..checkpoints import Graph

MOST_DIFFERENCE = 0.05
"""The largest mean difference in the probability of float32's first class: on few photos agreement is too coarse."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A quantized network and its agreement on the calibration photos."""

    graph: Graph
    kept_float: tuple[str, ...]
    agreement: Agreement

    def is_good(self, least: float) -> bool:
        return self.agreement.top1 >= least and self.agreement.mean_difference <= MOST_DIFFERENCE


def damage(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """The error of scores `(N, classes)`: root mean square, relative to the reference's standard deviation."""
    if not np.isfinite(found).all():
        return float("inf")
    spread = float(np.std(reference.astype(np.float64)))
    return float(np.sqrt(np.mean((found.astype(np.float64) - reference) ** 2))) / max(spread, 1e-12)


def worst_first(damages: Mapping[str, float]) -> list[str]:
    """Layers in descending order of their damage alone."""
    return sorted(damages, key=lambda name: -damages[name])


def smallest_good(
    order: list[str], measure: Callable[[tuple[str, ...]], Candidate], is_good: Callable[[Candidate], bool]
) -> Candidate:
    """The network with the fewest layers in float32, taken from the beginning of `order`, that `is_good`.

    1, 2, 4, … layers are tried, then numbers between the last two by bisection, so that few networks are made. If none
    is good, the best of them is returned.
    """
    count, too_few = 1, 0
    best: Candidate | None = None
    while True:
        count = min(count, len(order))
        candidate = measure(tuple(order[:count]))
        if is_good(candidate):
            break
        if best is None or _quality(candidate) > _quality(best):
            best = candidate
        if count == len(order):
            return best
        count, too_few = count * 2, count
    good, enough = candidate, count
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        candidate = measure(tuple(order[:middle]))
        if is_good(candidate):
            good, enough = candidate, middle
        else:
            too_few = middle
    return good


def _quality(candidate: Candidate) -> tuple[float, float]:
    return candidate.agreement.top1, -candidate.agreement.mean_difference
