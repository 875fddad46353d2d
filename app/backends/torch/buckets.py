"""Which sizes a batch is run in. A captured graph has one fixed size; a batch of any other is padded, or split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """One execution: the next `images` of the batch, in a program that computes `bucket` rows."""

    images: int
    bucket: int


def buckets_up_to(batch_size: int) -> list[int]:
    """1, 2, 4, 8, … and `batch_size` itself, so that full batches are never padded."""
    return sorted({2**power for power in range(batch_size.bit_length())} | {batch_size})


def plan_runs(largest: int, seconds: Mapping[int, float]) -> list[tuple[Run, ...]]:
    """For each batch size from 0 to `largest`, the runs that take the least time together, largest bucket first.

    `seconds` says how long a run in each bucket takes: at least one bucket, every time finite and not negative. Where
    two ways cost the same, the one with fewer runs is taken. Only the last run of a batch is ever padded.
    """
    if not seconds:
        raise ValueError("No bucket to run a batch in.")
    chosen: list[tuple[int, ...]] = [()]
    costs = [0.0]
    for size in range(1, largest + 1):
        # A bucket of at least the size ends the batch; a smaller one, full, leaves a batch that is planned already.
        ways = ((bucket, max(size - bucket, 0)) for bucket in seconds)
        bucket, rest = min(ways, key=lambda way: (costs[way[1]] + seconds[way[0]], len(chosen[way[1]]), way[0]))
        chosen.append(tuple(sorted((bucket, *chosen[rest]), reverse=True)))
        costs.append(costs[rest] + seconds[bucket])
    return [tuple(_filled(size, buckets)) for size, buckets in enumerate(chosen)]


def _filled(size: int, buckets: Iterable[int]) -> Iterator[Run]:
    """The images go into the buckets in order; what is left empty is in the last one."""
    for bucket in buckets:
        yield Run(min(size, bucket), bucket)
        size -= min(size, bucket)
