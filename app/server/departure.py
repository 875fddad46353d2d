"""Tells the app at once when the client of the request that it answers leaves."""

from __future__ import annotations

from collections.abc import Callable

from .uvicorn_internals import FlowControl, RequestResponseCycle


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
