"""Refuses requests by their headers, before the app sees them.

Under overload most requests are refused. In a task and through the middleware a refusal costs about a fifth of an
answer. This path costs some microseconds: it checks the headers and writes a prepared answer.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from ..api.access_log import AccessLog
from ..api.endpoint import Endpoints, ImageEndpoint
from ..api.error_answers import retry_after
from ..api.leases import Lease, Leases
from ..api.middleware import SMALL_BYTES
from ..api.request_context import first_of_each
from ..api.request_id import request_id_of
from ..api.timeouts import asked_seconds
from ..api.turns import Turns
from ..errors import Unavailable
from .refusal_bodies import RefusalBodies
from .uvicorn_internals import STATUS_LINE

# Refusals whose turns come within this time are sent together, on one timer.
_TOGETHER_SECONDS = 0.005
# One in so many is timed: reading a thread's CPU time is a system call.
_TIMED_ONE_IN = 8


@dataclass(slots=True)
class EarlyRefusal:
    """A request that is refused."""

    error: Unavailable
    endpoint: ImageEndpoint
    method: bytes
    request_id: str
    keeps_connection: bool
    """Whether the connection can serve another request afterwards."""
    headers: list[tuple[bytes, bytes]]


class Refused(Protocol):
    """A refusal that waits for its turn to be sent."""

    def send(self) -> None:
        """Answer now."""
        ...


class EarlyRefusals:
    """Decides by a request's headers whether it is refused; renders, paces and counts the refusals."""

    def __init__(self, endpoints: Endpoints, leases: Leases, log: AccessLog, turns: Turns, *, has_cors: bool) -> None:
        """With `has_cors`, requests from other origins go through the middleware, which adds their headers."""
        self._endpoints = endpoints
        # Most requests are found here: no query, no path parameter.
        self._found = {
            (method.encode(), each.path.encode()): each
            for each in endpoints
            if isinstance(each, ImageEndpoint)
            for method in each.methods
        }
        self._leases = leases
        self._log = log
        self.turns = turns
        self._has_cors = has_cors
        self._bodies = RefusalBodies()
        self._looks = 0
        # A heap of refusals that wait: the loop's time of the turn, and a number that orders equal times. The timer is
        # for the first of them.
        self._waiting: list[tuple[float, int, Refused]] = []
        self._timer: asyncio.TimerHandle | None = None
        # The server's own header lines, rebuilt when uvicorn renews the date.
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def concern(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> ImageEndpoint | None:
        """The endpoint, if this request is decided on here. `headers` have lower-case names."""
        endpoint = self._found.get((method, url))
        if endpoint is None:
            path = url.partition(b"?")[0].decode("latin-1")
            found = self._endpoints.find(method.decode("latin-1"), unquote(path) if "%" in path else path)
            if not isinstance(found, ImageEndpoint):
                return None
            endpoint = found
        is_of_a_page = self._has_cors and any(name == b"origin" for name, _ in headers)
        return None if is_of_a_page else endpoint

    def look(self, endpoint: ImageEndpoint, method: bytes, headers: list[tuple[bytes, bytes]]) -> EarlyRefusal | Lease:
        """Refuse a request for `endpoint`, or take its lease."""
        self._looks += 1
        is_timed = self._looks % _TIMED_ONE_IN == 0
        began = time.thread_time() if is_timed else 0.0
        first = first_of_each(headers)
        try:
            return self._leases.take(asked_seconds(first))
        except Unavailable as error:
            is_small = b"transfer-encoding" not in first and int(first.get(b"content-length", b"0")) <= SMALL_BYTES
            refusal = EarlyRefusal(
                error,
                endpoint,
                method,
                request_id_of(first.get(b"x-request-id", b"").decode("latin-1")),
                is_small and b"expect" not in first,
                headers,
            )
            if is_timed:
                self.turns.took(time.thread_time() - began)
            return refusal

    def await_turn(self, refused: Refused, loop: asyncio.AbstractEventLoop) -> None:
        """Send `refused` when its turn has come, which may be now."""
        wait = self.turns.wait_seconds()
        if wait <= 0:
            refused.send()
            return
        turn_at = loop.time() + wait
        if self._timer is not None and turn_at < self._waiting[0][0]:
            self._timer.cancel()
            self._timer = None
        heapq.heappush(self._waiting, (turn_at, self._looks, refused))
        if self._timer is None:
            self._timer = loop.call_later(wait, self._send_due, loop)

    def _send_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        due = loop.time() + _TOGETHER_SECONDS / 2
        began, sent = time.thread_time(), 0
        try:
            while self._waiting and self._waiting[0][0] <= due:
                heapq.heappop(self._waiting)[2].send()
                sent += 1
        finally:
            # Also after an error in `send`: the other refusals still wait.
            if self._waiting:
                wait = max(_TOGETHER_SECONDS, self._waiting[0][0] - loop.time())
                self._timer = loop.call_later(wait, self._send_due, loop)
        if sent:
            self.turns.took((time.thread_time() - began) / sent)

    def render(
        self, refusal: EarlyRefusal, default_headers: list[tuple[bytes, bytes]], root_path: str, *, closes: bool
    ) -> bytes:
        """The complete answer."""
        error = refusal.error
        errors = refusal.endpoint.errors
        body = self._bodies.body(errors, error, refusal.request_id, root_path)
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in default_headers)
        seconds = retry_after(error)
        says_close = closes and (b"connection", b"close") not in default_headers
        return b"%b%b%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
            STATUS_LINE[error.status],
            self._default_lines,
            b"" if seconds is None else b"retry-after: %d\r\n" % seconds,
            b"connection: close\r\n" if says_close else b"",
            errors.media_type.encode(),
            len(body),
            refusal.request_id.encode(),
            body,
        )

    def sent(self, refusal: EarlyRefusal, client: tuple[str, int] | None, seconds: float) -> None:
        """Count and log a refusal that was sent `seconds` after its headers."""
        scope = {"client": client, "method": refusal.method.decode("latin-1"), "headers": refusal.headers}
        self._log.refused_early(refusal.error, refusal.endpoint.path, refusal.request_id, scope, seconds)

    def gone(self, refusal: EarlyRefusal) -> None:
        """Count a refusal whose client left before its turn."""
        self._log.left_early(refusal.endpoint.path)
