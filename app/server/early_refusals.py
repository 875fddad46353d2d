"""Requests that are refused by their headers, before anything is built for them.

Under overload most requests are refused. One that goes the usual way, through a task and the middlewares, costs about a
fifth of an answer; here it costs some microseconds: the headers are looked at, and a prepared answer is written.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..api import AccessLog, Turns
from ..api.middleware import SMALL_BYTES, asked_seconds
from ..api.problems import MEDIA_TYPE, problem
from ..api.request_id import request_id_of
from ..classifier import Admitted
from ..errors import ServiceError, Unavailable
from .uvicorn_internals import STATUS_LINE

_NO_ID = "-"
# Refusals whose turns come within so long are sent together, on one timer.
_TOGETHER_SECONDS = 0.005
# Of so many, one is timed: reading a thread's CPU time is a system call.
_TIMED_ONE_IN = 8


@dataclass(slots=True)
class EarlyRefusal:
    """A request that is refused."""

    error: Unavailable
    path: str
    request_id: str
    user_agent: bytes
    keeps_connection: bool
    """Whether the connection can serve another request."""
    headers: list[tuple[bytes, bytes]]


class Refused(Protocol):
    """A refusal that waits for its turn."""

    def send(self) -> None:
        """Answer now."""
        ...


class EarlyRefusals:
    """Decides by a request's headers whether it is refused, and says how and when."""

    def __init__(
        self,
        admit: Callable[[float | None], Admitted],
        log: AccessLog,
        turns: Turns,
        *,
        paths: frozenset[str],
        has_cors: bool,
    ) -> None:
        """`admit` is given the seconds that the client asks for, if it does, and raises why it is refused.

        With `has_cors` a browser's request from another origin goes the usual way, where its headers are added.
        """
        self._admit = admit
        self._log = log
        self.turns = turns
        self._paths = {path.encode(): path for path in paths}
        self._has_cors = has_cors
        self._bodies: dict[tuple[str, str, str], tuple[bytes, bytes]] = {}
        self._looks = 0
        # A heap of those whose turn is later: the loop's time when it comes, and a number for those of one moment. The
        # timer is the first one's.
        self._waiting: list[tuple[float, int, Refused]] = []
        self._timer: asyncio.TimerHandle | None = None
        # The server's own header lines, made anew with each second's date.
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def concern(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a request is decided on here. `headers` have names in lower case."""
        if method != b"POST" or url.partition(b"?")[0] not in self._paths:
            return False
        return not (self._has_cors and any(name == b"origin" for name, _ in headers))

    def look(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> EarlyRefusal | Admitted:
        """Refuse or admit a request that this concerns."""
        self._looks += 1
        is_timed = self._looks % _TIMED_ONE_IN == 0
        began = time.thread_time() if is_timed else 0.0
        # Of a header that comes twice the first counts, as in a request that is not refused.
        named = dict(reversed(headers))
        try:
            return self._admit(asked_seconds(named.get(b"x-request-timeout-ms", b"")))
        except Unavailable as error:
            is_small = b"transfer-encoding" not in named and int(named.get(b"content-length", b"0")) <= SMALL_BYTES
            refusal = EarlyRefusal(
                error,
                self._paths[url.partition(b"?")[0]],
                request_id_of(named.get(b"x-request-id", b"").decode("latin-1")),
                named.get(b"user-agent", b""),
                is_small and b"expect" not in named,
                headers,
            )
            if is_timed:
                self.turns.took(time.thread_time() - began)
            return refusal

    def await_turn(self, refused: Refused, loop: asyncio.AbstractEventLoop) -> None:
        """Have it sent when its turn has come, which may be now."""
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
            # Also behind one that could not be sent: the others still wait.
            if self._waiting:
                wait = max(_TOGETHER_SECONDS, self._waiting[0][0] - loop.time())
                self._timer = loop.call_later(wait, self._send_due, loop)
        if sent:
            self.turns.took((time.thread_time() - began) / sent)

    def render(
        self, refusal: EarlyRefusal, default_headers: list[tuple[bytes, bytes]], root_path: str, *, closes: bool
    ) -> bytes:
        """The answer, whole."""
        error = refusal.error
        key = (error.code, error.detail, root_path)
        if key not in self._bodies:
            self._bodies[key] = _body_around_id(error, root_path)
        before, behind = self._bodies[key]
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._default_lines = b"".join(b"%b: %b\r\n" % header for header in default_headers)
        wait = error.retry_after_seconds
        end = b"}" if wait is None else b',"retry_after_ms":%d}' % round(wait * 1e3)
        retry = b"" if wait is None else b"retry-after: %d\r\n" % max(1, math.ceil(wait))
        says_close = closes and (b"connection", b"close") not in default_headers
        request_id = refusal.request_id.encode()
        return b"%b%b%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b%b%b%b" % (
            STATUS_LINE[error.status],
            self._default_lines,
            retry,
            b"connection: close\r\n" if says_close else b"",
            MEDIA_TYPE.encode(),
            len(before) + len(request_id) + len(behind) + len(end),
            request_id,
            before,
            request_id,
            behind,
            end,
        )

    def sent(self, refusal: EarlyRefusal, client: tuple[str, int] | None, seconds: float) -> None:
        """Count and log one that was answered, `seconds` after its headers."""
        self._log.refused_early(refusal.error, _scope_of(refusal, client), refusal.user_agent, seconds)

    def gone(self, refusal: EarlyRefusal) -> None:
        """Count one whose client left before its turn."""
        self._log.left_early(refusal.path)


def _body_around_id(error: ServiceError, root_path: str) -> tuple[bytes, bytes]:
    """A problem's JSON before and behind the request's id, without its end and without when to come again."""
    document = problem(type(error)(error.detail), {"request_id": _NO_ID, "root_path": root_path})
    text = json.dumps(document, separators=(",", ":"))
    before, behind = text.split(f'"request_id":"{_NO_ID}"')
    return f'{before}"request_id":"'.encode(), f'"{behind[:-1]}'.encode()


def _scope_of(refusal: EarlyRefusal, client: tuple[str, int] | None) -> Mapping[str, Any]:
    return {
        "request_id": refusal.request_id,
        "client": client,
        "path": refusal.path,
        "method": "POST",
        "headers": refusal.headers,
    }
