"""Gauges with functions: evaluated on the event loop, also where the values are written to files."""

from __future__ import annotations

import threading
from collections.abc import Callable

from prometheus_client import Gauge

_thread = threading.local()


class _Looked:
    """A gauge's function and its last value."""

    def __init__(self, gauge: Gauge, function: Callable[[], float]) -> None:
        self.gauge = gauge
        self._function = function
        self._value = 0.0

    def look(self, *, is_shared: bool) -> None:
        self._value = self._function()
        if is_shared:
            self.gauge.set(self._value)

    def forget(self) -> None:
        self._function = _none

    def read(self) -> float:
        return self._value if getattr(_thread, "has_looked", False) else self._function()


def read_last_values() -> None:
    """From now on this thread reads each function's last value, because the functions belong to the event loop."""
    _thread.has_looked = True


class GaugeFunctions:
    """The functions of a set of gauges."""

    def __init__(self, *, is_shared: bool) -> None:
        """`is_shared`: the gauges' values are written to files."""
        self._is_shared = is_shared
        self._looked: list[_Looked] = []

    def set(self, gauge: Gauge, function: Callable[[], float]) -> None:
        """Set the gauge's function, in place of an earlier one."""
        looked = _Looked(gauge, function)
        self._looked = [each for each in self._looked if each.gauge is not gauge] + [looked]
        if not self._is_shared:
            Gauge.set_function(gauge, looked.read)

    def look(self) -> None:
        """Evaluate each function; if values are shared, write them."""
        for each in self._looked:
            each.look(is_shared=self._is_shared)

    def clear(self) -> None:
        """Drop the functions and the objects that they refer to; the gauges themselves may live longer."""
        for each in self._looked:
            each.forget()
        self._looked = []


def gauge_class(functions: GaugeFunctions) -> type[Gauge]:
    """A `Gauge` whose functions are kept in `functions`."""

    class LookedGauge(Gauge):
        def set_function(self, f: Callable[[], float]) -> None:
            functions.set(self, f)

    return LookedGauge


def _none() -> float:
    return 0.0
