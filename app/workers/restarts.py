"""When a process that died is started again, and when that is no cure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_LONGEST_DELAY_SECONDS = 10.0


class Restarts:
    """Of one process: its deaths within the last `window_seconds`."""

    def __init__(
        self,
        most: int | None,
        window_seconds: float,
        first_delay_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `most` deaths within the window, to start it again is no cure; None where it always may be one."""
        self._most = most
        self._first_delay_seconds = first_delay_seconds
        self._window_seconds = window_seconds
        self._clock = clock
        self._deaths: deque[float] = deque()

    def died(self) -> float | None:
        """Seconds until it is started again, longer each time; None where it has died `most` times in the window."""
        now = self._clock()
        self._deaths.append(now)
        while self._deaths[0] < now - self._window_seconds:
            self._deaths.popleft()
        if self._most is not None and len(self._deaths) >= self._most:
            return None
        return min(_LONGEST_DELAY_SECONDS, self._first_delay_seconds * 2.0 ** (len(self._deaths) - 1))
