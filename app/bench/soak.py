"""Growth of a server over many requests: its memory and open files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .processes import MemorySample

# Pools, caches and the allocator fill up first, which is not growth.
_WARM_UP_SHARE = 0.2
ENOUGH_TO_GROW = 20_000
"""Fewest requests with which a soak tells growth from warm-up."""
_ALLOWED_SHARE = 0.02
_ALLOWED_BYTES = 4_000_000
_ALLOWED_FILES = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a server and its children over a run, read once a second."""

    before_bytes: int
    """When ready, before the first request."""
    peak_bytes: int
    early_bytes: float
    """Median of the second fifth of the samples."""
    late_bytes: float
    """Median of the last fifth."""
    files_before: int
    files_peak: int
    files_early: float
    files_late: float
    grew: bool | None
    """Whether late exceeds early by more than 2% and 4 MB, or by more than 8 files; None without a long enough soak."""
    samples: tuple[MemorySample, ...]


def memory_of(samples: Sequence[MemorySample], is_long: bool) -> Memory | None:
    """None without samples, for a server elsewhere. Growth is judged only in a soak that `is_long`."""
    if not samples:
        return None
    early, late = _part(samples, _WARM_UP_SHARE, 2 * _WARM_UP_SHARE), _part(samples, 1 - _WARM_UP_SHARE, 1.0)
    early_bytes, late_bytes = (statistics.median(each.rss_bytes for each in part) for part in (early, late))
    files_early, files_late = (statistics.median(each.open_files for each in part) for part in (early, late))
    grown = late_bytes - early_bytes
    return Memory(
        before_bytes=samples[0].rss_bytes,
        peak_bytes=max(each.rss_bytes for each in samples),
        early_bytes=early_bytes,
        late_bytes=late_bytes,
        files_before=samples[0].open_files,
        files_peak=max(each.open_files for each in samples),
        files_early=files_early,
        files_late=files_late,
        grew=(
            None
            if not is_long or len(samples) < 10
            else grown > max(_ALLOWED_SHARE * early_bytes, _ALLOWED_BYTES) or files_late - files_early > _ALLOWED_FILES
        ),
        samples=tuple(samples),
    )


def _part(samples: Sequence[MemorySample], since: float, until: float) -> Sequence[MemorySample]:
    first, last = int(since * len(samples)), int(until * len(samples))
    return samples[first : max(last, first + 1)] or samples[-1:]
