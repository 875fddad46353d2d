"""The capabilities of a connection that the app uses: it hears at once when its client leaves."""

from __future__ import annotations

from collections.abc import Callable

from .uvicorn_internals import FlowControl, RequestResponseCycle


class RequestConnection:
    """The `Connection` of one request."""

    __slots__ = ("_cycle", "_departure")

    def __init__(self, cycle: RequestResponseCycle, departure: Departure) -> None:
        self._cycle = cycle
        self._departure = departure

    def tell_when_gone(self, on_gone: Callable[[], None] | None) -> bool:
        return self._departure.tell(self._cycle, on_gone)

    def close_after_answer(self) -> None:
        self._cycle.keep_alive = False


class Departure:
    """Of one connection. An app can use it instead of waiting for ASGI's `http.disconnect`, which takes a task."""

    def __init__(self, flow: FlowControl) -> None:
        self._flow = flow
        self._on_gone: Callable[[], None] | None = None

    def tell(self, cycle: RequestResponseCycle, on_gone: Callable[[], None] | None) -> bool:
        """Have `on_gone` called when the client leaves its request; None ends that. False where it has left already."""
        if cycle.disconnected:
            return False
        self._on_gone = on_gone
        # After a large piece uvicorn reads no further until the app asks for more, and would not see the client leave.
        self._flow.resume_reading()
        return True

    def happened(self, cycle: RequestResponseCycle) -> None:
        """The client of `cycle` has left."""
        cycle.disconnected = True
        cycle.message_event.set()
        if self._on_gone is not None:
            self._on_gone()
            self._on_gone = None
