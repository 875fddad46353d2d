"""One log line for each request, and its count."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from prometheus_client import Counter

from ..errors import ServiceError
from ..metrics import Metrics
from .paths import own_path
from .request_context import RequestContext, context_of, first_of_each

logger = logging.getLogger(__name__)

# Probes and scrapers ask every few seconds: only their failures are logged.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_MAX_TEXT = 256
# Writing a refusal's line costs as much as the refusal: of many, a few are enough.
_LINES_A_SECOND = 10
_SUM_UP_SECONDS = 2.0
CLIENT_GONE = 499
_UNMATCHED = "unmatched"

ClientOf = Callable[[Mapping[str, Any]], tuple[str, int] | None]


class AccessLog:
    """Counts and logs answers."""

    def __init__(self, metrics: Metrics, fixed_paths: frozenset[str], client_of: ClientOf) -> None:
        """`fixed_paths` name requests that no route has seen; `client_of` finds the client behind trusted proxies."""
        self._metrics = metrics
        self._fixed_paths = fixed_paths
        self._client_of = client_of
        self._sample = LineSample()
        self._refused_early: dict[tuple[str, str], Counter] = {}

    def answered(self, scope: Mapping[str, Any], context: RequestContext, began: float) -> None:
        """A request has ended; `began` is a monotonic time."""
        status = context.status or CLIENT_GONE
        code = context.problem_code or ("client_gone" if status == CLIENT_GONE else "")
        route = self._route(scope, context)
        self._metrics.requests.labels(route, str(status), code).inc()
        level = logging.DEBUG if route in _QUIET and status < 400 else logging.INFO
        if not logger.isEnabledFor(level):
            return
        omitted = self._sample.take() if status == 503 else 0
        if omitted is None:
            return
        seconds = time.monotonic() - began
        # The path as received, still percent-encoded: no control or look-alike character is in the log.
        path = scope.get("raw_path", b"").decode("ascii", "replace")[:_MAX_TEXT]
        named = f" {code}" if code else ""
        logger.log(
            level,
            "%s %s %d%s %.1f ms",
            scope["method"],
            path,
            status,
            named,
            seconds * 1e3,
            extra={
                "request_id": context.request_id,
                "client": _client(scope),
                "method": scope["method"],
                "path": path,
                "route": route,
                "status": status,
                "code": code or None,
                "received_bytes": context.received_bytes,
                "sent_bytes": context.sent_bytes,
                "total_ms": round(seconds * 1e3, 2),
                **context.stages,
                "user_agent": context.headers.get(b"user-agent", b"")[:_MAX_TEXT].decode("latin-1") or None,
                **({"omitted": omitted} if omitted else {}),
            },
        )

    def refused_early(
        self, error: ServiceError, path: str, request_id: str, scope: Mapping[str, Any], seconds: float
    ) -> None:
        """A request for the endpoint `path` was refused by its headers, and answered `seconds` after them.

        No middleware has seen it: `scope` has the socket's peer as its client, and the headers.
        """
        counter = self._refused_early.get((path, error.code))
        if counter is None:
            counter = self._metrics.requests.labels(path, str(error.status), error.code)
            self._refused_early[path, error.code] = counter
        counter.inc()
        if not logger.isEnabledFor(logging.INFO) or (omitted := self._sample.take()) is None:
            return
        user_agent = first_of_each(scope["headers"]).get(b"user-agent", b"")
        logger.info(
            "%s %s %d %s %.1f ms",
            scope["method"],
            path,
            error.status,
            error.code,
            seconds * 1e3,
            extra={
                "request_id": request_id,
                "client": _client({"client": self._client_of(scope)}),
                "method": scope["method"],
                "path": path,
                "route": path,
                "status": error.status,
                "code": error.code,
                "total_ms": round(seconds * 1e3, 2),
                "user_agent": user_agent[:_MAX_TEXT].decode("latin-1") or None,
                **({"omitted": omitted} if omitted else {}),
            },
        )

    def left_early(self, path: str) -> None:
        """The client left before its refusal was sent."""
        self._metrics.requests.labels(path, str(CLIENT_GONE), "client_gone").inc()

    def refused(self, error: ServiceError, scope: MutableMapping[str, Any]) -> None:
        """A connection ended with `error` before its request was complete."""
        context = context_of(scope)
        self._metrics.requests.labels(self._route(scope, context), str(error.status), error.code).inc()
        if (omitted := self._sample.take() if error.status == 503 else 0) is None:
            return
        logger.info(
            "%d %s",
            error.status,
            error.code,
            extra={
                "request_id": context.request_id,
                "client": _client(scope),
                "status": error.status,
                "code": error.code,
                **({"omitted": omitted} if omitted else {}),
            },
        )

    def _route(self, scope: Mapping[str, Any], context: RequestContext) -> str:
        """The route's path, never the client's: clients can send any number of different paths.

        Most refusals come before routing. A malformed request may have no path at all.
        """
        if "route" in scope:
            return getattr(scope["route"], "path", _UNMATCHED)
        if context.endpoint is not None:
            return context.endpoint.path
        path = own_path(scope) if "path" in scope else ""
        return path if path in self._fixed_paths else _UNMATCHED


class LineSample:
    """Limits log lines of one kind to ten a second.

    The next line that is written says how many were left out; if none follows, a separate line says it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._written = 0
        self._omitted = 0
        self._last: asyncio.TimerHandle | None = None

    def take(self) -> int | None:
        """The number of lines left out before this one; None if this one is left out too."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= _LINES_A_SECOND:
            self._omitted += 1
            if self._last is None:
                self._last = asyncio.get_running_loop().call_later(_SUM_UP_SECONDS, self._sum_up)
            return None
        self._written += 1
        omitted, self._omitted = self._omitted, 0
        return omitted

    def _sum_up(self) -> None:
        self._last = None
        if self._omitted:
            logger.info("%d more requests were answered 503.", self._omitted, extra={"omitted": self._omitted})
            self._omitted = 0


def _client(scope: Mapping[str, Any]) -> str | None:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else None
