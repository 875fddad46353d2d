"""The safety margin of admission, learned from how late recent answers were against their predictions."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

# Of the images that are admitted with no time to spare, about this share may miss their deadline.
_MAY_MISS = 0.005
# Older answers are dropped, so that an earlier disturbance of the machine does not count for long.
_WINDOW = 400
_AT_FIRST = 0.1
_MOST = 0.5


class Headroom:
    """The 99.5th percentile of the latest images' lateness, as a share of the time that each had."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque([_AT_FIRST] * _WINDOW)
        self._sorted: list[float] = list(self._latest)

    @property
    def share(self) -> float:
        return self._sorted[-round(_MAY_MISS * _WINDOW)]

    def observe(self, late_by: float) -> None:
        """An image was answered `late_by` of its time later than predicted (negative: earlier)."""
        late_by = min(max(late_by, 0.0), _MOST)
        del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(late_by)
        insort(self._sorted, late_by)
