"""Timing of code that is called again and again: one side alone, or several sides in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Repeated calls, each of one image or of one batch."""

    images: int
    seconds: float
    cpu_seconds: float
    call_ms: float
    """Median time of one call."""

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def cpu_seconds_an_image(self) -> float:
        return self.cpu_seconds / self.images if self.images else 0.0


def together(paces: list[Pace]) -> Pace:
    """The sum of processes that ran side by side."""
    return Pace(
        images=sum(each.images for each in paces),
        seconds=sum(each.images for each in paces) / max(sum(each.rate for each in paces), 1e-9),
        cpu_seconds=sum(each.cpu_seconds for each in paces),
        call_ms=statistics.median(each.call_ms for each in paces),
    )


def repeat(
    call: Callable[[int], object],
    images_a_call: int,
    seconds: float,
    pool: ThreadPoolExecutor | None = None,
    threads: int = 1,
) -> Pace:
    """Call for `seconds`, on `threads` threads of `pool` at once; `call` receives an ascending number."""
    times: list[list[float]] = [[] for _ in range(threads)]
    ends_at = time.perf_counter() + seconds

    def one(mine: list[float], number: int) -> None:
        while not mine or time.perf_counter() < ends_at:
            began = time.perf_counter()
            call(number)
            mine.append(time.perf_counter() - began)
            number += threads

    began, began_cpu = time.perf_counter(), time.process_time()
    if pool is None:
        one(times[0], 0)
    else:
        for future in [pool.submit(one, mine, number) for number, mine in enumerate(times)]:
            future.result()
    took, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    calls = [each for mine in times for each in mine]
    return Pace(len(calls) * images_a_call, took, cpu, statistics.median(calls) * 1e3)


def in_turns(sides: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """The time of every call of every side, in seconds, after one warm-up call of each.

    In each round each side is called for `seconds` divided by rounds and sides, at least once. A machine that changes
    its pace changes it for all sides.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(rounds):
        for name, call in sides.items():
            until = time.perf_counter() + seconds / rounds / len(sides)
            while True:
                began = time.perf_counter()
                call()
                ended = time.perf_counter()
                taken[name].append(ended - began)
                if ended >= until:
                    break
    return taken


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """`values` divided by `others`, round by round, without rounds in which either is 0."""
    return [value / other for value, other in zip(values, others, strict=True) if value and other]


def spread(values: Sequence[float], digits: str = ".2f") -> str:
    """The median, with lowest and highest in brackets if they differ; a dash if there are no values."""
    if not values:
        return "–"
    median, low, high = (f"{value:{digits}}" for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"
