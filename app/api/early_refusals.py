"""Requests that are refused by their headers, before anything is built for them.

Under overload most requests are refused. One that goes the usual way, through a task and the middlewares, costs about a
fifth of an answer; here it costs some microseconds: the headers are looked at, and a prepared answer is written.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..classifier import Admitted
from ..errors import ServiceError, Unavailable
from .access_log import AccessLog
from .problems import MEDIA_TYPE, problem
from .request_id import request_id_of
from .turns import Turns

# A small body is on its way already: it is read to its end, and the connection lives on.
SMALL_BYTES = 256 * 1024
_NO_ID = "-"


@dataclass(frozen=True, slots=True)
class EarlyRefusal:
    """A request that is refused."""

    error: Unavailable
    path: str
    request_id: str
    user_agent: str
    keeps_connection: bool
    """Whether the connection can serve another request."""


class EarlyRefusals:
    """Decides by a request's headers whether it is refused, and says how."""

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
        self._paths = frozenset(path.encode() for path in paths)
        self._has_cors = has_cors
        self._bodies: dict[tuple[str, str, str], tuple[bytes, bytes]] = {}

    def concern(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a request is decided on here. `headers` have names in lower case."""
        if method != b"POST" or url.partition(b"?")[0] not in self._paths:
            return False
        return not (self._has_cors and any(name == b"origin" for name, _ in headers))

    def look(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> EarlyRefusal | Admitted:
        """Refuse or admit a request that this concerns."""
        path = url.partition(b"?")[0]
        # Of a header that comes twice the first counts, as in a request that is not refused.
        named = dict(reversed(headers))
        began = time.thread_time()
        try:
            return self._admit(asked_seconds(named.get(b"x-request-timeout-ms", b"")))
        except Unavailable as error:
            is_small = b"transfer-encoding" not in named and int(named.get(b"content-length", b"0")) <= SMALL_BYTES
            refusal = EarlyRefusal(
                error,
                path.decode(),
                request_id_of(named.get(b"x-request-id", b"").decode("latin-1")),
                named.get(b"user-agent", b"").decode("latin-1"),
                keeps_connection=is_small and b"expect" not in named,
            )
            self.turns.took(time.thread_time() - began)
            return refusal

    def render(
        self, refusal: EarlyRefusal, default_headers: list[tuple[bytes, bytes]], root_path: str, *, closes: bool
    ) -> bytes:
        """The answer, whole."""
        error = refusal.error
        key = (error.code, error.detail, root_path)
        if key not in self._bodies:
            self._bodies[key] = _body_around_id(error, root_path)
        before, behind = self._bodies[key]
        wait = error.retry_after_seconds
        end = b"}" if wait is None else b',"retry_after_ms":%d}' % round(wait * 1e3)
        request_id = refusal.request_id.encode()
        body = before + request_id + behind + end
        lines = [STATUS_LINE[error.status]]
        lines += [b"%b: %b\r\n" % header for header in default_headers]
        if wait is not None:
            lines.append(b"retry-after: %d\r\n" % max(1, math.ceil(wait)))
        if closes and (b"connection", b"close") not in default_headers:
            lines.append(b"connection: close\r\n")
        lines.append(
            b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n"
            % (MEDIA_TYPE.encode(), len(body), request_id)
        )
        lines.append(body)
        return b"".join(lines)

    def sent(self, refusal: EarlyRefusal, client: tuple[str, int] | None, seconds: float) -> None:
        """Count and log one that was answered, `seconds` after its headers."""
        self._log.refused_early(refusal.error, _scope_of(refusal, client), refusal.user_agent, seconds)

    def gone(self, refusal: EarlyRefusal) -> None:
        """Count one whose client left before its turn."""
        self._log.left_early(refusal.path)


def asked_seconds(value: bytes) -> float | None:
    """X-Request-Timeout-Ms, where it is one; the route says what is wrong with it."""
    is_number = value.isdigit() and 0 < len(value) < 10 and int(value) > 0
    return int(value) / 1e3 if is_number else None


def _body_around_id(error: ServiceError, root_path: str) -> tuple[bytes, bytes]:
    """A problem's JSON before and behind the request's id, without its end and without when to come again."""
    document = problem(type(error)(error.detail), {"request_id": _NO_ID, "root_path": root_path})
    text = json.dumps(document, separators=(",", ":"))
    before, behind = text.split(f'"request_id":"{_NO_ID}"')
    return f'{before}"request_id":"'.encode(), f'"{behind[:-1]}'.encode()


def _scope_of(refusal: EarlyRefusal, client: tuple[str, int] | None) -> Mapping[str, Any]:
    return {"request_id": refusal.request_id, "client": client, "path": refusal.path, "method": "POST"}
