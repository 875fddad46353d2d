"""Limits of request bodies: size and encoding, how many at once, how long each may take, how many bytes are held.

No body is kept here; each is counted while it is received.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..batching import retry_after_seconds
from ..errors import BodyTooLarge, BodyTooSlow, Overloaded, ServiceError, UnsupportedEncoding
from ..metrics import Metrics
from .endpoint import ImageEndpoint
from .error_answers import refuse
from .request_context import RequestContext, context_of
from .timeouts import timeout_of

_RETRY_SECONDS = 1.0
_PLAIN = (b"", b"identity")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits for all bodies together and for each body."""

    open_uploads: int
    held_bytes: int
    """Bytes of received bodies whose requests are not answered yet."""
    seconds: float
    bytes_per_second: int
    """A body gets one more second for each so many bytes …"""
    most_seconds: float
    """… up to this."""

    def allowed_seconds(self, received_bytes: int) -> float:
        return min(self.most_seconds, self.seconds + received_bytes / self.bytes_per_second)


class Uploads:
    """All bodies that are being received or held."""

    def __init__(self, limits: UploadLimits, metrics: Metrics) -> None:
        self.limits = limits
        self.open = 0
        self.held_bytes = 0
        metrics.open_uploads.set_function(lambda: self.open)
        metrics.received_bytes.set_function(lambda: self.held_bytes)
        self._metrics = metrics

    def begin(self, context: RequestContext, max_bytes: int) -> Upload | None:
        """Accept a request's body by its headers; None where it has none.

        Raises `UnsupportedEncoding`, `BodyTooLarge`, or `Overloaded` if the limits leave no room.
        """
        if context.headers.get(b"content-encoding", b"").lower() not in _PLAIN:
            raise UnsupportedEncoding()
        declared = context.declared_bytes
        if declared > max_bytes:
            raise BodyTooLarge(max_bytes)
        if not context.has_body:
            return None
        if self.open >= self.limits.open_uploads or self.held_bytes + declared > self.limits.held_bytes:
            raise self.refusal()
        return Upload(self, max_bytes)

    def refusal(self) -> ServiceError:
        self._metrics.shed.labels("uploads").inc()
        return Overloaded(
            "More uploads are on their way than this server takes at once.", retry_after_seconds(_RETRY_SECONDS)
        )


class Upload:
    """One body: the bytes received so far, and the time since which it is awaited."""

    def __init__(self, uploads: Uploads, max_bytes: int) -> None:
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._began = self._last_piece_at = time.monotonic()
        self._received = 0
        self._is_open = True
        uploads.open += 1

    def limit(self, receive: Receive) -> Receive:
        """`receive`, within the limits."""
        return partial(self._receive, receive)

    async def _receive(self, receive: Receive) -> Message:
        """The next message. Raises `BodyTooLarge`, a `RequestTimeout`, or `Overloaded`."""
        if not self._is_open:
            return await receive()
        limits = self._uploads.limits
        allowed = limits.allowed_seconds(self._received)
        left = self._began + allowed - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await receive()
        except TimeoutError:
            raise timeout_of(time.monotonic() - self._last_piece_at, allowed, BodyTooSlow) from None
        self._last_piece_at = time.monotonic()
        size = len(message.get("body", b""))
        if self._received + size > self._max_bytes:
            raise BodyTooLarge(self._max_bytes)
        self._received += size
        self._uploads.held_bytes += size
        if not message.get("more_body", False):
            self._end()
        elif self._uploads.held_bytes > limits.held_bytes:
            raise self._uploads.refusal()
        return message

    def close(self) -> None:
        """The request is over: its bytes are no longer held."""
        self._end()
        self._uploads.held_bytes -= self._received
        self._received = 0

    def _end(self) -> None:
        self._uploads.open -= self._is_open
        self._is_open = False


class BodyLimits:
    """ASGI middleware that applies the limits to requests without images. The road applies them to the others."""

    def __init__(self, app: ASGIApp, uploads: Uploads, default_bytes: int) -> None:
        self.app = app
        self.uploads = uploads
        self.default_bytes = default_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        endpoint = context.endpoint
        if scope["type"] != "http" or isinstance(endpoint, ImageEndpoint):
            await self.app(scope, receive, send)
            return
        try:
            upload = self.uploads.begin(context, endpoint.max_body_bytes if endpoint else self.default_bytes)
        except ServiceError as error:
            await refuse(error, scope, receive, send)
            return
        if upload is None:
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, upload.limit(receive), send)
        finally:
            upload.close()
