"""One HTTP connection: requests go to the app, and errors that no app sees are answered in the service's format."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from ..api.request_context import context_of
from ..errors import MalformedRequest, ServiceError
from .connection_limits import ConnectionLimits
from .crowding import Crowding, crowded
from .departure import Departure, RequestConnection
from .early_refusals import EarlyRefusal
from .half_closed import HalfClosed
from .joined_writes import JoinedWrites
from .last_answer import Discard, last_answer
from .reading import FRAMING_HEADERS, NOT_HTTP, ReadingProtocol
from .refused_request import RefusedRequest
from .uvicorn_internals import RequestResponseCycle

_MAPPED_IPV4 = "::ffff:"


class HttpProtocol(ReadingProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **named: Any) -> None:
        super().__init__(*arguments, limits=limits, **named)
        self._limits = limits
        # uvicorn's `cycle` is the newest request; with pipelined requests, the one being answered is older.
        self._running: RequestResponseCycle | None = None
        # Writes the refusal when all earlier requests have been answered.
        self._refuse_at_last: Callable[[], None] | None = None
        self._stalled_at: float | None = None
        self._half_closed: HalfClosed | None = None

    # --- requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client and self.client[0].startswith(_MAPPED_IPV4):
            # The IPv4 address as proxies and logs show it, instead of the mapped form of a dual-stack socket.
            self.client = (self.client[0].removeprefix(_MAPPED_IPV4), self.client[1])
        self._discard = Discard(transport, self.flow, self.loop)
        self._departure = Departure(self.flow)
        shortage = self._limits.open_files.shortage(transport)
        self._crowding = Crowding(self.connections, self._limits.connections, shortage)
        if self._crowding.is_refused:
            self._is_refused = True
            self._answer_refusal(crowded(), {"client": self.client}, wait=False)
        else:
            self._heads.wait(self._crowding.head_share)

    @property
    def awaits_head(self) -> bool:
        """Whether a request is expected: the connection's first, or a later one whose first bytes have arrived."""
        return self._heads.is_awaited

    def connection_lost(self, exc: Exception | None) -> None:
        self._heads.stop()
        if self._running is not None:
            self._departure.happened(self._running)
        if self._early is not None:
            self._early.connection_lost()
        if self._half_closed is not None:
            self._half_closed.stop()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        if self._repeats_head:
            self._repeats_head = False
            return
        if self._is_refused:
            return
        self._heads.head_ended()
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            self._raise(MalformedRequest(NOT_HTTP))
        if self._crowding.refuses(self.url):
            self._raise(crowded())
        if self._refuses_early():
            return
        super().on_headers_complete()
        if self._crowding.is_extra:
            self.cycle.keep_alive = False
        if not self.pipeline:
            self._running = self.cycle
        if self.scope["method"] != "HEAD":
            self.cycle.transport = JoinedWrites(self.transport)  # type: ignore[assignment]
        scope: Any = self.scope
        context_of(scope).connection = RequestConnection(self.cycle, self._departure)

    def _refuses_early(self) -> bool:
        """Refuse this request by its headers, if it is not admitted. Behind an open request, the road decides."""
        refusals = self._limits.early_refusals
        if self._early is not None:
            # The client sent its next request without waiting for the refusal: send that now.
            self._early.send()
            if self._is_refused:
                return True
        is_idle = self.cycle is None or self.cycle.response_complete
        if refusals is None or not is_idle or self.parser.should_upgrade():
            return False
        method = self.parser.get_method()
        endpoint = refusals.concern(method, self.url, self.headers)
        if endpoint is None:
            return False
        looked = refusals.look(endpoint, method, self.headers)
        if not isinstance(looked, EarlyRefusal):
            # The lease is in the context at once, so that it counts before any further data is read.
            scope: Any = self.scope
            context_of(scope).lease = looked
            return False
        keeps = (
            self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1" and not self._crowding.is_extra
        )
        self._early = RefusedRequest(self, refusals, looked, keeps_connection=keeps)
        self._early.begin()
        return True

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and any(name in FRAMING_HEADERS for name, _ in self.headers):
            return  # its body follows, see `_feed`
        self._heads.message_ended()
        if self._early is not None:
            self._early.body_ended()
        elif not self._is_refused:
            super().on_message_complete()

    # --- answers that do not come from the app

    def end_early(self, *, closes: bool) -> None:
        """The refused request is over; `closes`: the rest of its body is not read, and the connection closes."""
        self._early = None
        self.server_state.total_requests += 1
        if closes:
            self._is_refused = True
            self._heads.stop()
            self._discard.begin()
        elif not self._heads.in_message:  # otherwise the next request has begun
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def shutdown(self) -> None:
        if self._early is not None:
            self._early.send(closes=True)
        else:
            super().shutdown()

    def _refuse(self, error: ServiceError) -> None:
        """Read no more, and answer the invalid request with a problem, in its turn.

        Its turn comes after all complete requests before it. If its own answer has already begun, that is the last one.
        """
        if self._early is not None:
            # The error is in the body of the refused request, or after it.
            self._early.send(closes=not self._early.has_ended)
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._heads.stop()
        self._unset_keepalive_if_required()
        faulty, running = self.cycle, self._running
        is_idle = running is None or running.response_complete
        if is_idle or not faulty.more_body:
            # uvicorn's newest request is complete: the error is in the next one, which has no cycle.
            refuse = partial(self._answer_refusal, error, {"client": self.client})
            if is_idle:
                refuse()
            else:
                self._refuse_at_last = refuse
        elif faulty is not running:
            self.pipeline.popleft()
            self._refuse_at_last = partial(self._answer_refusal, error, faulty.scope)
        else:
            faulty.keep_alive = False
            if not faulty.response_started:
                # The rest of its body will not arrive: to the app, the client has left.
                self._departure.happened(faulty)
                scope: Any = faulty.scope
                context_of(scope).is_answered_by_server = True
                self._answer_refusal(error, scope)

    def _answer_refusal(self, error: ServiceError, scope: Any, wait: bool = True) -> None:
        self._unset_keepalive_if_required()
        self.transport.write(last_answer(error, context_of(scope), self.root_path))
        if not wait or self._half_closed is not None:
            self.transport.close()
        else:
            self._discard.begin()
        self._limits.on_refusal(error, scope)

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        if not is_last:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if is_last and self._refuse_at_last is not None and not self.transport.is_closing():
            refuse, self._refuse_at_last = self._refuse_at_last, None
            refuse()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: yes for a client that has sent complete requests and waits for answers."""
        if self._early is not None:
            self._early.send(closes=True)
            return False
        if self._running is None or self.cycle.response_complete:
            return False
        if self._is_refused:
            if self._refuse_at_last is None:
                return False  # the refusal is written
        elif self._heads.in_message and not self.awaits_head:
            return False  # in the middle of a body
        else:
            self._heads.stop()
            self.cycle.keep_alive = False
        self._half_closed = HalfClosed(self.transport, self._may_send_interim)
        return True

    def _may_send_interim(self) -> bool:
        running = self._running
        return running is not None and not running.response_started and running.scope["http_version"] != "1.0"

    # --- answers that the client does not read

    def check_stall(self, now: float) -> None:
        """Abort a connection whose answer has been unread for too long; `now` is a monotonic time.

        Called for all connections once a second, because a transport has no event for waiting to be closed.
        """
        if self.flow.write_paused or self.transport.is_closing():
            if self._stalled_at is None:
                self._stalled_at = now
            elif now - self._stalled_at > self._limits.response_seconds:
                self.transport.abort()
        else:
            self._stalled_at = None
