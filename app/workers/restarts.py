"""Restart delays of a process that died, and the limit after which it is not restarted."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LONGEST_DELAY_SECONDS = 10.0


class Restarts:
    """The deaths of one process within the last `window_seconds`."""

    def __init__(
        self,
        most: int | None,
        window_seconds: float,
        first_delay_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """After `most` deaths within the window a restart no longer helps; None means no limit."""
        self._most = most
        self._first_delay_seconds = first_delay_seconds
        self._window_seconds = window_seconds
        self._clock = clock
        self._deaths: deque[float] = deque()

    def died(self) -> float | None:
        """Seconds until the restart, longer each time; None if it has died `most` times within the window."""
        now = self._clock()
        self._deaths.append(now)
        while self._deaths[0] < now - self._window_seconds:
            self._deaths.popleft()
        if self._most is not None and len(self._deaths) >= self._most:
            return None
        return min(_LONGEST_DELAY_SECONDS, self._first_delay_seconds * 2.0 ** (len(self._deaths) - 1))
