"""What every request passes before a route sees it: pure ASGI, and nothing here reads a body.

The order, outermost first, is set in `server.create_app`:

    RequestContext   request id, counting, one log line
    EarlyAnswers     an answer given before the body was read arrives
    EndOfGrace       what a shutdown cannot wait for is answered too (draining.py)
    Guard            an unexpected exception becomes a 500 in the one error shape
    Admission        whether the service takes images now
    BodyLimits       declared and counted size, content encoding
    Uploads          how many bodies are on their way, how long each may take, how much is held (uploads.py)
    ShortWay         the most frequent request, straight to its endpoint (predict.py)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..classifier import Classifier
from ..errors import BodyTooLarge, Internal, ServiceError, UnsupportedEncoding
from .access_log import CLIENT_GONE, AccessLog
from .paths import own_path
from .problems import problem_response
from .request_id import request_id_of
from .turns import Turns

logger = logging.getLogger(__name__)

# A small body is on its way already: it is read to its end, and the connection lives on.
SMALL_BYTES = 256 * 1024
# How much of an unread body is swallowed after an early answer, and for how long. Closing a socket with unread data
# resets it, and a client that is still sending then never sees the answer.
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 2.0


class RequestContext:
    """Gives each request an id, the client's own if it is harmless, and logs and counts its answer."""

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self.app = app
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get("x-request-id", ""))
        scope["request_id"] = request_id
        began = time.monotonic()
        status = CLIENT_GONE
        received = sent_bytes = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, counted_receive, send_with_id)
        finally:
            # A request that the protocol ended in its middle has been told there.
            if "answered_below" not in scope:
                self.log.answered(scope, status, began, received, sent_bytes)


class EarlyAnswers:
    """Lets an answer arrive that was given before the whole body was read.

    The answer is sent whole and, unless the body is small, says `Connection: close`; then what still comes is read and
    thrown away, up to a bound and for a bounded time, before the connection closes. No 100-continue is sent once an
    answer is on its way.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # A small body is on its way already: it is read to its end, and the connection lives on.
        is_small = "transfer-encoding" not in headers and int(headers.get("content-length", "0")) <= SMALL_BYTES
        body_ended = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        early = False

        async def watched_receive() -> Message:
            nonlocal body_ended
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                body_ended = True
            return message

        async def careful_send(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start" and not body_ended:
                early = True
                if not is_small:
                    MutableHeaders(scope=message)["Connection"] = "close"
            if not early or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            await _discard(watched_receive, lambda: body_ended)
            if is_small and not body_ended:
                scope.get("close_connection", _nothing)()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, watched_receive, careful_send)


def _nothing() -> None:
    """Of a server whose connections close by themselves."""


async def _discard(receive: Receive, is_over: Callable[[], bool]) -> None:
    received = 0
    give_up_at = time.monotonic() + _DISCARD_SECONDS
    while not is_over() and received < _DISCARD_BYTES:
        try:
            async with asyncio.timeout(max(0.0, give_up_at - time.monotonic())):
                message = await receive()
        except TimeoutError:
            return
        received += len(message.get("body", b""))


class Guard:
    """The last resort: an exception that nobody expected is logged here and answered without a trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception:
            if scope["type"] != "http":
                raise
            logger.exception("Request %s failed unexpectedly.", scope["request_id"])
            if started:
                raise
            await refuse(Internal(), scope, receive, send)


class Admission:
    """Refuses images before their bodies are read while the service cannot take them.

    The service's own connections ask first, before a request becomes one (`EarlyRefusals`): what was admitted is in the
    scope.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str], classifier: Classifier, turns: Turns) -> None:
        self.app = app
        self.paths = paths
        self.classifier = classifier
        self.turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or own_path(scope) not in self.paths:
            await self.app(scope, receive, send)
            return
        asked = asked_seconds(Headers(scope=scope).get("x-request-timeout-ms", "").encode("latin-1"))
        try:
            admitted = scope.get("admitted") or self.classifier.admit(asked)
        except ServiceError as error:
            await asyncio.sleep(self.turns.wait_seconds())
            await refuse(error, scope, receive, send)
            return
        scope["admitted"] = admitted
        try:
            await self.app(scope, receive, send)
        finally:
            self.classifier.schedule.withdraw(admitted.announcement)


class BodyLimits:
    """Refuses a body that is declared too large or encoded, and counts one that does not say its size."""

    def __init__(self, app: ASGIApp, default_bytes: int, by_path: dict[str, int]) -> None:
        self.app = app
        self.default_bytes = default_bytes
        self.by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.by_path.get(own_path(scope), self.default_bytes)
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            await refuse(UnsupportedEncoding(), scope, receive, send)
            return
        # httptools refuses a Content-Length that is no number, before the request gets here.
        if int(headers.get("content-length", "0")) > limit:
            await refuse(BodyTooLarge(limit), scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise BodyTooLarge(limit)
            return message

        await self.app(scope, counted_receive, send)


async def refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem instead of what lies further in."""
    await problem_response(error, scope)(scope, receive, send)


def asked_seconds(value: bytes) -> float | None:
    """X-Request-Timeout-Ms, where it is one; the route says what is wrong with it."""
    is_number = value.isdigit() and 0 < len(value) < 10 and int(value) > 0
    return int(value) / 1e3 if is_number else None
