"""Paces refusals, so that they do not take CPU time from accepted requests."""

from __future__ import annotations

import time
from collections.abc import Callable

# Of one core. Above it a refusal is delayed, and with it the client, which would otherwise retry at once.
_SHARE_OF_A_CORE = 0.05
_LONGEST_SECONDS = 1.0
# Refusals that arrive together after a quiet time are sent at once.
_BURST_SECONDS = 0.05
# Only the decision and the sending are timed. The parser, the event loop and the system calls come on top: at
# 1,000 and 2,000 refusals a second each refusal takes this many times as much of the process's CPU time.
_TIMES_MEASURED = 4.5
_SECONDS_AT_FIRST = 40e-6
_KEPT = 0.98


class Turns:
    """Spaces refusals so that together they take no more than a share of a core (a leaky bucket as a meter: GCRA).

    No refusal waits for more than a second, even if the share is then exceeded.
    """

    def __init__(
        self, share: float = _SHARE_OF_A_CORE, processes: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`processes` is the number of processes that divide the share."""
        self._share = share / processes
        self._clock = clock
        self._each_seconds = _SECONDS_AT_FIRST
        self._next_at = -1e9

    @property
    def interval_seconds(self) -> float:
        """The shortest interval between two refusals."""
        return _TIMES_MEASURED * self._each_seconds / self._share

    def took(self, seconds: float) -> None:
        """A refusal took `seconds` of this thread's CPU time."""
        self._each_seconds = _KEPT * self._each_seconds + (1 - _KEPT) * seconds

    def wait_seconds(self) -> float:
        """Take the next turn; returns the seconds until it comes."""
        now = self._clock()
        turn_at = max(self._next_at, now - _BURST_SECONDS)
        self._next_at = min(turn_at + self.interval_seconds, now + _LONGEST_SECONDS)
        return min(max(0.0, turn_at - now), _LONGEST_SECONDS)
