"""Gauges with functions: evaluated on the event loop, also where the values are written to files."""

from __future__ import annotations

import threading
from collections.abc import Callable

from prometheus_client import Gauge

_thread = threading.local()


class Looked:
    """A gauge's function and its last value."""

    def __init__(self, gauge: Gauge, function: Callable[[], float]) -> None:
        self.gauge = gauge
        self._function = function
        self._value = 0.0

    def look(self, *, is_shared: bool) -> None:
        self._value = self._function()
        if is_shared:
            self.gauge.set(self._value)

    def read(self) -> float:
        return self._value if getattr(_thread, "has_looked", False) else self._function()


def read_last_values() -> None:
    """From now on this thread reads each function's last value: the functions belong to the event loop."""
    _thread.has_looked = True


def gauge_class(looked_at: list[Looked], *, is_shared: bool) -> type[Gauge]:
    """A `Gauge` whose functions are kept in `looked_at`, one for each gauge: the last that was set."""

    class LookedGauge(Gauge):
        def set_function(self, f: Callable[[], float]) -> None:
            looked = Looked(self, f)
            looked_at[:] = [each for each in looked_at if each.gauge is not self] + [looked]
            if not is_shared:
                super().set_function(looked.read)

    return LookedGauge
