"""The interface of a connection for the app, which reports at once that its client has left."""

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
    """Reports that a connection's client has left. An app needs no task for it, as for ASGI's `http.disconnect`."""

    def __init__(self, flow: FlowControl) -> None:
        self._flow = flow
        self._on_gone: Callable[[], None] | None = None

    def tell(self, cycle: RequestResponseCycle, on_gone: Callable[[], None] | None) -> bool:
        """Call `on_gone` when the client leaves; None cancels that. False if the client has left already."""
        if cycle.disconnected:
            return False
        self._on_gone = on_gone
        # After a large piece uvicorn reads nothing until the app asks for more, and would not see the client leave.
        self._flow.resume_reading()
        return True

    def happened(self, cycle: RequestResponseCycle) -> None:
        """The client of `cycle` has left."""
        cycle.disconnected = True
        cycle.message_event.set()
        if self._on_gone is not None:
            self._on_gone()
            self._on_gone = None
