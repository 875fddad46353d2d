"""How large a batch is worth it: measured, not guessed."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..resources import available_memory_bytes, resident_memory_bytes

_REPEATS = 3
_WORTH_IT = 1.05
# Two sizes in a row that gain nothing end the climb: on CPU the third is already paying seconds to learn nothing.
_PATIENCE = 2
_SHARE_OF_SLO = 0.8
# Kept times are believed while a single image still takes about what it did: more or less than this, and the machine
# is another, or does something else beside.
_STILL_HOLDS = 2.0

logger = logging.getLogger(__name__)


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


class Timings(Protocol):
    """What an earlier start measured with this model on this machine: batch size → seconds."""

    def read(self) -> Mapping[int, float]:
        """Empty where nothing is kept."""
        ...

    def keep(self, seconds: Mapping[int, float]) -> None: ...


class Room:
    """Whether batches twice as large fit into the memory beside the half that is set aside for decoding.

    On a CPU a network's intermediate results lie in this process: hundreds of megabytes for a batch of some size, for
    which a container with a limit is killed. They grow with the batch; what the sizes so far have added says how fast.
    """

    def __init__(self, slots: int, resident_bytes: Callable[[], int], limit_bytes: int) -> None:
        """`slots` calls run at once, each with results of its own; the warm-up climbs with one that is none of them."""
        self._others = slots if slots > 1 else 0
        self._resident_bytes = resident_bytes
        self._limit_bytes = limit_bytes
        self._before = resident_bytes()

    def for_twice(self) -> bool:
        resident = self._resident_bytes()
        grown = max(0, resident - self._before)
        return resident + grown + self._others * 2 * grown <= self._limit_bytes


def has_room_for_twice(device: str, slots: int) -> Callable[[], bool]:
    """`Room.for_twice` of this process; where another device computes, its own memory counts, and it tells itself."""
    if not device.startswith("cpu"):
        return lambda: True
    return Room(slots, resident_memory_bytes, available_memory_bytes() // 2).for_twice


def plan_batches(
    run: Callable[[int], None],
    largest: int,
    fixed: int | None,
    is_cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    step_seconds: float = 3.0,
    slo_seconds: float | None = None,
    known: Mapping[int, float] | None = None,
    has_room: Callable[[], bool] = lambda: True,
) -> BatchPlan:
    """Warm up and time `run(batch_size)` at 1, 2, 4, … up to `largest`; blocks.

    With `fixed` only 1 and that size are timed, and it is the plan. Else the plan is the smallest size within 5% of the
    best throughput measured; the climb ends early once two sizes in a row brought less than 5%, or where the next
    size would take more than `step_seconds`: on a slow device it costs the start more than it can bring. It also ends
    where there is none, as `has_room` says, for twice as many images.

    With `slo_seconds`, what an image may take from its last byte to its answer, the plan is no larger than what keeps
    that where a batch has just started: two batches one after the other, and a fifth of the time for all the rest.

    `known` is what an earlier start measured. Where a single image still takes about that, nothing else is timed, and
    only the planned size is run once.
    """
    if known and not is_cancelled() and _still_holds(run, known, clock) and (fixed is None or fixed in known):
        plan = _choose(dict(known), fixed, slo_seconds)
        if plan.max_batch_size > 1:
            run(plan.max_batch_size)
        return plan
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
        if fixed is None and (fruitless >= _PATIENCE or next_takes > step_seconds or not has_room()):
            break
    if not seconds:
        return BatchPlan(1, {1: 0.0})
    plan = _choose(seconds, min(fixed, largest) if fixed else None, slo_seconds)
    if plan.max_batch_size < max(seconds) and not is_cancelled():
        # Last, so that a backend can give back what only the larger ones needed.
        run(plan.max_batch_size)
    return plan


def _choose(seconds: dict[int, float], fixed: int | None, slo_seconds: float | None) -> BatchPlan:
    if fixed:
        return BatchPlan(fixed, seconds)
    best = max(size / max(took, 1e-9) for size, took in seconds.items())
    worth_it = min(size for size in seconds if size / max(seconds[size], 1e-9) * _WORTH_IT >= best)
    if slo_seconds is None:
        return BatchPlan(worth_it, seconds)
    in_time = [size for size in seconds if 2 * seconds[size] <= _SHARE_OF_SLO * slo_seconds]
    if not in_time:
        logger.warning(
            "RESNET_SLO_P99_MS is %.0f, but two single images take %.0f ms here: it cannot be kept under load.",
            slo_seconds * 1e3,
            2e3 * seconds[1],
        )
    return BatchPlan(min(worth_it, max(in_time, default=1)), seconds)


def _still_holds(run: Callable[[int], None], known: Mapping[int, float], clock: Callable[[], float]) -> bool:
    run(1)
    began = clock()
    run(1)
    return 1 / _STILL_HOLDS <= (clock() - began) / max(known.get(1, 0.0), 1e-9) <= _STILL_HOLDS


def _median_seconds(run: Callable[[int], None], size: int, clock: Callable[[], float]) -> float:
    run(size)  # the first run at a size chooses algorithms and allocates: it is not timed
    times = []
    for _ in range(_REPEATS):
        began = clock()
        run(size)
        times.append(clock() - began)
    return statistics.median(times)
