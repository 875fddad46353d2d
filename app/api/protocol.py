"""uvicorn's HTTP protocol, with deadlines and bounds of its own, and its errors in the service's own shape.

A request becomes one only when its headers are complete; what goes wrong before that no route and no middleware can
see. So it is met here: silent and slow clients, endless headers, what is not HTTP, and answers that nobody reads.

Each connection has a timer of its own for its headers, so that many slow clients are not cut in one moment.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..batching import retry_after_seconds
from ..errors import HeadersTooLarge, HeadersTooSlow, MalformedRequest, Overloaded, ServiceError, Unavailable
from .early_refusals import EarlyRefusal, EarlyRefusals
from .half_closed import HalfClosed
from .joined_writes import JoinedWrites
from .open_files import OpenFiles, Shortage
from .problems import MEDIA_TYPE, problem
from .refused_request import RefusedRequest
from .request_id import new_request_id
from .timeouts import timeout_of

_NOT_HTTP = "This is not a valid HTTP/1.1 request."
# After a refusal, how much more is read and thrown away, and for how long: closing a socket with unread data resets it,
# and the client then never sees the answer.
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 2.0
# Around its chunks a chunked body may have as many bytes as a chunk a byte long takes, and a bit.
_FRAMING = 8
# Connections over the bound whose request is still read, for it may be a health check.
SPARE_CONNECTIONS = 64
_ALWAYS_ANSWERED = (b"/healthz", b"/readyz", b"/metrics")
_CROWDED = "More connections are open than this server takes. Try again, or use one that is open already."
_RETRY_SECONDS = 1.0
_MAPPED_IPV4 = "::ffff:"
_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may take of a connection."""

    header_seconds: float
    """From the connection, or from a later request's first byte, to the end of its headers."""
    header_bytes: int
    header_count: int
    response_seconds: float
    """How long an answer may lie unread."""
    connections: int
    """Open at once; past it only health checks are answered."""
    on_refusal: Callable[[ServiceError, dict[str, Any]], None] = lambda error, scope: None
    """Told of each request that ended here, with what is known of it as in an ASGI scope."""
    early_refusals: EarlyRefusals | None = None
    """Requests that are refused by their headers."""
    open_files: OpenFiles = field(default_factory=OpenFiles)


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        # Runs while headers are awaited: from the connection on, or from a later request's first byte.
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_silent = True
        self._head_piece_at = 0.0
        self._in_message = self._in_head = False
        self._message_bytes = 0
        self._body_bytes = 0
        self._head_bytes = 0
        self._refusal: ServiceError | None = None
        self._is_refused = False
        # uvicorn's `cycle` is the newest request; where several came at once, the one that is being answered is older.
        self._running: RequestResponseCycle | None = None
        # Told when the client leaves the running request.
        self._on_gone: Callable[[], None] | None = None
        # Writes the refusal, once all that came before it has been answered.
        self._refuse_at_last: Callable[[], None] | None = None
        self._discarded = 0
        self._stalled_at: float | None = None
        self._repeats_head = False
        # The request that is refused by its headers, until its body has ended and its answer is sent.
        self._early: RefusedRequest | None = None
        self._is_extra = False
        self._shortage = Shortage.NONE
        self._half_closed: HalfClosed | None = None

    # --- what is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client and self.client[0].startswith(_MAPPED_IPV4):
            # As proxies and logs know it, and not as a socket for both sees it.
            self.client = (self.client[0].removeprefix(_MAPPED_IPV4), self.client[1])
        self._shortage = self._limits.open_files.shortage(transport)
        self._is_extra = self._is_crowded()
        if self._is_crowded(SPARE_CONNECTIONS):
            self._is_refused = True
            self._answer_refusal(_crowded(), {"root_path": self.root_path, "client": self.client}, wait=False)
        else:
            self._await_head()

    def _is_crowded(self, spare: int = 0) -> bool:
        shortage = Shortage.FEW_LEFT if spare else Shortage.NONE
        return len(self.connections) > self._limits.connections + spare or self._shortage > shortage

    @property
    def awaits_head(self) -> bool:
        """Whether a request is to come: the connection's first, or a later one whose first bytes are here."""
        return self._head_timer is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_awaiting_head()
        if self._running is not None:
            self._disconnect(self._running)
        if self._early is not None:
            self._early.connection_lost()
        if self._half_closed is not None:
            self._half_closed.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._discarded += len(data)
            if self._discarded > _DISCARD_BYTES:
                self.transport.abort()
            return
        self._is_silent = False
        self._in_head = self._in_head or not self._in_message
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._in_head and not self._is_refused:
            # A head that came whole, as most do, needs no timer.
            self._await_head()
            self._head_piece_at = self.loop.time()
        self._tell_app()
        if self._in_message and not self._is_refused:
            # Names and values that are not complete, trailers and chunks' extensions reach no callback: whatever came
            # and is no body is counted here.
            self._message_bytes += len(data)
            if self._message_bytes - _FRAMING * self._body_bytes > self._limits.header_bytes + len(data):
                self._refuse(HeadersTooLarge())

    def _feed(self, data: bytes) -> None:
        """Parse. Who asks for a WebSocket, or for HTTP/2 as curl does, is answered as if they had not.

        The parser believes that an upgrade is granted, with the request's head as its end; what comes behind the head
        is given to a new one.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                framing = [(name, value) for name, value in self.headers if name in _FRAMING_HEADERS]
                self.parser = httptools.HttpRequestParser(self)
                if framing:
                    self._repeats_head = True
                    lines = b"".join(b"%b: %b\r\n" % header for header in framing)
                    self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")

    def on_message_begin(self) -> None:
        if self._repeats_head or self._is_refused:
            return
        # Where it comes in one piece with a request that was refused by its headers, that one's end has set it.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._message_bytes = self._body_bytes = self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._repeats_head or self._is_refused:
            return
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._repeats_head or self._is_refused:
            return
        self._count(len(name) + len(value) + 4)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > self._limits.header_count:
            self._raise(HeadersTooLarge())

    def on_headers_complete(self) -> None:
        if self._repeats_head:
            self._repeats_head = False
            return
        if self._is_refused:
            return
        self._in_head = False
        self._stop_awaiting_head()
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            self._raise(MalformedRequest(_NOT_HTTP))
        if self._is_extra and self._is_crowded() and self.url.partition(b"?")[0] not in _ALWAYS_ANSWERED:
            self._raise(_crowded())
        if self._refuses_early():
            return
        super().on_headers_complete()
        if self._is_extra:
            self.cycle.keep_alive = False
        if not self.pipeline:
            self._running = self.cycle
        if self.scope["method"] != "HEAD":
            self.cycle.transport = JoinedWrites(self.transport)  # type: ignore[assignment]
        self.scope["close_connection"] = partial(setattr, self.cycle, "keep_alive", False)  # type: ignore[typeddict-unknown-key]
        self.scope["tell_when_gone"] = partial(self._tell_when_gone, self.cycle)  # type: ignore[typeddict-unknown-key]

    def _refuses_early(self) -> bool:
        """Refuse this request by its headers, if it is to be. Behind one that is being answered, admission does it."""
        refusals = self._limits.early_refusals
        if self._early is not None:
            # The client did not wait for its answer: it has it now.
            self._early.send()
            if self._is_refused:
                return True
        is_idle = self.cycle is None or self.cycle.response_complete
        if refusals is None or not is_idle or self.parser.should_upgrade():
            return False
        if not refusals.concern(self.parser.get_method(), self.url, self.headers):
            return False
        looked = refusals.look(self.url, self.headers)
        if not isinstance(looked, EarlyRefusal):
            # From now on it counts, before anything else that is read.
            self.scope["admitted"] = looked  # type: ignore[typeddict-unknown-key]
            return False
        keeps = self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1" and not self._is_extra
        self._early = RefusedRequest(self, refusals, looked, keeps_connection=keeps)
        self._early.begin()
        return True

    def on_body(self, body: bytes) -> None:
        # Called for each chunk, and a piece of data may have 40,000: what is for all of them is in `_tell_app`.
        self._body_bytes += len(body)
        if self._early is None and not self._is_refused and not self.cycle.response_complete:
            self.cycle.body += body

    def _tell_app(self) -> None:
        """That more of its body is here; read no further where it has enough."""
        if self._early is None and self.cycle is not None and self.cycle.body:
            if len(self.cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and any(name in _FRAMING_HEADERS for name, _ in self.headers):
            return  # its body is still to come, see `_feed`
        self._in_message = False
        if self._early is not None:
            self._early.body_ended()
        elif not self._is_refused:
            super().on_message_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            # Its rest may be here, unread behind requests that are being answered.
            self._head_timer = None
            self._await_head()
        elif self._is_silent:
            self.transport.close()
        else:
            silent_seconds = self.loop.time() - self._head_piece_at
            self._refuse(timeout_of(silent_seconds, self._limits.header_seconds, HeadersTooSlow))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.header_bytes:
            self._raise(HeadersTooLarge())

    def _raise(self, error: ServiceError) -> None:
        """End the parsing: the parser reports an error, and uvicorn then asks for its 400."""
        self._refusal = error
        raise httptools.HttpParserError(error.code)

    # --- what is answered here

    def end_early(self, *, closes: bool) -> None:
        """The request that was refused is over; `closes` says that the rest of its body is not read."""
        self._early = None
        self.server_state.total_requests += 1
        if closes:
            self._is_refused = True
            self._stop_awaiting_head()
            self._shut_and_discard()
        elif not self._in_message:  # else the next one has begun
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def shutdown(self) -> None:
        if self._early is not None:
            self._early.send(closes=True)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or MalformedRequest(_NOT_HTTP))

    def _refuse(self, error: ServiceError) -> None:
        """Read no more, and answer with a problem where the request that is none would have been answered.

        That is behind all that came whole before it. Where the answer to the faulty one is on its way already, that is
        the last.
        """
        if self._early is not None:
            # The fault is in its own body, which is refused anyway, or behind it.
            self._early.send(closes=not self._early.has_ended)
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_awaiting_head()
        self._unset_keepalive_if_required()
        faulty, running = self.cycle, self._running
        is_idle = running is None or running.response_complete
        if is_idle or not faulty.more_body:
            # uvicorn's newest request is whole: what is at fault is behind it, and has no cycle.
            refuse = partial(self._answer_refusal, error, {"root_path": self.root_path, "client": self.client})
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
                # The rest of its body will not come: whoever reads it is told that the client has gone.
                self._disconnect(faulty)
                faulty.scope["answered_below"] = True  # type: ignore[typeddict-unknown-key]
                self._answer_refusal(error, faulty.scope)

    def _answer_refusal(self, error: ServiceError, scope: Any, wait: bool = True) -> None:
        self._unset_keepalive_if_required()
        scope.setdefault("request_id", new_request_id())
        body = json.dumps(problem(error, scope), separators=(",", ":")).encode()
        head = {
            "content-type": MEDIA_TYPE,
            "content-length": str(len(body)),
            "x-request-id": scope["request_id"],
            "connection": "close",
        }
        if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
            head["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in head.items())
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        if not wait or self._half_closed is not None:
            self.transport.close()
        else:
            self._shut_and_discard()
        self._limits.on_refusal(error, scope)

    def _shut_and_discard(self) -> None:
        """Nothing more is written. What still comes is read and thrown away, for a while."""
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_DISCARD_SECONDS, self.transport.close)

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        if not is_last:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if is_last and self._refuse_at_last is not None and not self.transport.is_closing():
            refuse, self._refuse_at_last = self._refuse_at_last, None
            refuse()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays: for a client that has sent whole requests, and waits for their answers."""
        if self._early is not None:
            self._early.send(closes=True)
            return False
        if self._running is None or self.cycle.response_complete:
            return False
        if self._is_refused:
            if self._refuse_at_last is None:
                return False  # the refusal is written
        elif self._in_message and not self.awaits_head:
            return False  # in the middle of a body
        else:
            self._stop_awaiting_head()
            self.cycle.keep_alive = False
        self._half_closed = HalfClosed(self.transport, self._may_send_interim)
        return True

    def _may_send_interim(self) -> bool:
        running = self._running
        return running is not None and not running.response_started and running.scope["http_version"] != "1.0"

    # --- who has left

    def _tell_when_gone(self, cycle: RequestResponseCycle, on_gone: Callable[[], None] | None) -> bool:
        """Have `on_gone` called when the client leaves its request; None ends that. False where it has left already.

        An app can ask for this instead of waiting for ASGI's `http.disconnect`, which takes a task of its own.
        """
        if cycle.disconnected:
            return False
        self._on_gone = on_gone
        # After a large piece uvicorn reads no further until the app asks for more; who does not read sees nobody go.
        self.flow.resume_reading()
        return True

    def _disconnect(self, cycle: RequestResponseCycle) -> None:
        cycle.disconnected = True
        cycle.message_event.set()
        if self._on_gone is not None:
            self._on_gone()
            self._on_gone = None

    # --- what is not read by the client

    def check_stall(self, now: float) -> None:
        """Cut a connection whose answer has lain unread for too long; `now` is a monotonic time.

        Asked of all connections once a second: a transport tells nobody that it waits to be closed.
        """
        if self.flow.write_paused or self.transport.is_closing():
            if self._stalled_at is None:
                self._stalled_at = now
            elif now - self._stalled_at > self._limits.response_seconds:
                self.transport.abort()
        else:
            self._stalled_at = None


def _crowded() -> Overloaded:
    return Overloaded(_CROWDED, retry_after_seconds(_RETRY_SECONDS))
