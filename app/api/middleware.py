"""ASGI middleware that every request passes, whichever route it is for; nothing here reads a body.

The order, outermost first, is set in `server.app.create_app`:

    Requests        request id, context, lease given back, counting, one log line
    Cors            headers for pages of other origins (cors.py)
    EarlyAnswers    an answer given before the body was read arrives
    EndOfGrace      requests that a shutdown cannot wait for are answered too (draining.py)
    Guard           an unexpected exception becomes a 500
    BodyLimits      limits of the bodies that bring no images (uploads.py)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Internal
from .access_log import AccessLog
from .endpoint import Endpoints
from .error_answers import refuse
from .leases import Leases
from .paths import own_path
from .request_context import RequestContext, context_of, first_of_each
from .request_id import request_id_of

logger = logging.getLogger(__name__)

# The rest of a small body is already on its way: it is read to its end, and the connection stays open.
SMALL_BYTES = 256 * 1024
# How much of an unread body is discarded after an early answer, and for how long. Closing a socket with unread data
# resets the connection, and a client that is still sending then never sees the answer.
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 2.0


class Requests:
    """Fills in the context of each request, gives its lease back, and logs and counts its answer."""

    def __init__(self, app: ASGIApp, endpoints: Endpoints, leases: Leases, log: AccessLog) -> None:
        self.app = app
        self.endpoints = endpoints
        self.leases = leases
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        context = context_of(scope)
        context.headers = first_of_each(scope["headers"])
        context.request_id = request_id_of(context.headers.get(b"x-request-id", b"").decode("latin-1"))
        context.endpoint = self.endpoints.find(scope["method"], own_path(scope))
        context.body_ended = not context.has_body
        id_header = (b"x-request-id", context.request_id.encode())

        async def tracked_receive() -> Message:
            message = await receive()
            context.received_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                context.body_ended = True
            return message

        async def tracked_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            else:
                context.sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, tracked_receive, tracked_send)
        finally:
            if context.lease is not None:
                self.leases.give_back(context.lease)
            if not context.is_answered_by_server:
                self.log.answered(scope, context, began)


class EarlyAnswers:
    """Makes sure that an answer given before the whole body was read reaches the client.

    The complete answer is sent and, unless the body is small, says `Connection: close`. Then the rest of the body is
    read and discarded, within limits of size and time, before the connection closes. Once an answer has begun, no
    100 Continue is sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = context_of(scope)
        is_early = False

        async def careful_send(message: Message) -> None:
            nonlocal is_early
            if message["type"] == "http.response.start" and not context.body_ended:
                is_early = True
                if not _is_small(context):
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            if not is_early or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            await _discard(receive, lambda: context.body_ended)
            if _is_small(context) and not context.body_ended and context.connection is not None:
                context.connection.close_after_answer()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, receive, careful_send)


def _is_small(context: RequestContext) -> bool:
    return b"transfer-encoding" not in context.headers and context.declared_bytes <= SMALL_BYTES


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
    """Logs an unexpected exception and answers 500 without the trace."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception:
            if scope["type"] != "http":
                raise
            context = context_of(scope)
            logger.exception("Request %s failed unexpectedly.", context.request_id)
            if context.status is not None:
                raise
            await refuse(Internal(), scope, receive, send)
