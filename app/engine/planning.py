"""How large a batch is worth it: measured, not guessed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_REPEATS = 3
_WORTH_IT = 1.05
# Two sizes in a row that gain nothing end the climb: on CPU the third is already paying seconds to learn nothing.
_PATIENCE = 2


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The largest batch to form, and what was measured: batch size → seconds, medians."""

    max_batch_size: int
    seconds: dict[int, float]

    @property
    def seconds_per_image(self) -> float:
        """At the planned size."""
        size = max(size for size in self.seconds if size <= self.max_batch_size)
        return self.seconds[size] / size


def plan_batches(
    run: Callable[[int], None],
    largest: int,
    fixed: int | None,
    is_cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    step_seconds: float = 3.0,
) -> BatchPlan:
    """Warm up and time `run(batch_size)` at 1, 2, 4, … up to `largest`; blocks.

    With `fixed` only 1 and that size are timed, and it is the plan. Else the plan is the smallest size within 5% of the
    best throughput measured; the climb ends early once two sizes in a row brought less than 5%, or where the next
    size would take more than `step_seconds`: on a slow device it costs the start more than it can bring.
    """
    sizes = sorted({1, min(fixed, largest)}) if fixed else [2**power for power in range(largest.bit_length())]
    seconds: dict[int, float] = {}
    best = 0.0
    fruitless = 0
    for size in sizes:
        if is_cancelled():
            break
        seconds[size] = _median_seconds(run, size, clock)
        throughput = size / max(seconds[size], 1e-9)
        fruitless = 0 if throughput > best * _WORTH_IT else fruitless + 1
        best = max(best, throughput)
        next_takes = 2 * seconds[size] * (_REPEATS + 1)
        if fixed is None and (fruitless >= _PATIENCE or next_takes > step_seconds):
            break
    if not seconds:
        return BatchPlan(1, {1: 0.0})
    if fixed:
        return BatchPlan(min(fixed, largest), seconds)
    return BatchPlan(min(size for size in seconds if size / max(seconds[size], 1e-9) * _WORTH_IT >= best), seconds)


def _median_seconds(run: Callable[[int], None], size: int, clock: Callable[[], float]) -> float:
    run(size)  # the first run at a size chooses algorithms and allocates: it is not timed
    times = []
    for _ in range(_REPEATS):
        began = clock()
        run(size)
        times.append(clock() - began)
    return statistics.median(times)
