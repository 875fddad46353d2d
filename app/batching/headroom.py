"""How much of its time an image should have to spare when it is admitted: learned from how wrong predictions were."""

from __future__ import annotations

# Of the images that are admitted with no time to spare, about this share may miss their deadline.
_MAY_MISS = 0.005
_STEP = 0.02
_AT_FIRST = 0.1
_MOST = 0.5


class Headroom:
    """A running estimate of the 99.5th percentile of lateness, as a share of the time that an image has.

    Each observation moves the estimate by a fixed step, down by `_MAY_MISS` of it or up by the rest: it rests where as
    many are above it as may be (stochastic approximation of a quantile; Robbins and Monro, 1951).
    """

    def __init__(self) -> None:
        self.share = _AT_FIRST

    def observe(self, late_by: float) -> None:
        """An image was answered `late_by` of its time later than predicted (negative: earlier)."""
        moved = self.share + _STEP * ((1 - _MAY_MISS) if late_by > self.share else -_MAY_MISS)
        self.share = min(max(moved, 0.0), _MOST)
