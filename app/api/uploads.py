"""Bodies on their way: how many at once, how long each may take, and how many bytes are held for them all.

Pure ASGI, like `middleware`: nothing here keeps a body, it only watches one being read.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..batching import retry_after_seconds
from ..errors import BodyTooSlow, Overloaded, ServiceError
from ..metrics import Metrics
from .middleware import refuse
from .timeouts import timeout_of

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What all clients together, and each for its body, may take."""

    open_uploads: int
    held_bytes: int
    """Of bodies that were received and whose requests are not answered yet."""
    seconds: float
    bytes_per_second: int
    """How many bytes buy a body one more second …"""
    most_seconds: float
    """… up to this."""

    def allowed_seconds(self, received_bytes: int) -> float:
        return min(self.most_seconds, self.seconds + received_bytes / self.bytes_per_second)


class Uploads:
    """Keeps bodies within `limits`; whoever comes when all is taken is told to come again."""

    def __init__(self, app: ASGIApp, limits: UploadLimits, metrics: Metrics) -> None:
        self.app = app
        self.limits = limits
        self.open = 0
        self.held_bytes = 0
        metrics.open_uploads.set_function(lambda: self.open)
        metrics.received_bytes.set_function(lambda: self.held_bytes)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not has_body(headers := Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        declared = int(headers.get("content-length", "0"))
        if self.open >= self.limits.open_uploads or self.held_bytes + declared > self.limits.held_bytes:
            await refuse(self.refusal(), scope, receive, send)
            return
        body = _Body(self)
        try:
            await self.app(scope, lambda: body.receive(receive), send)
        finally:
            body.close()

    def refusal(self) -> ServiceError:
        self._metrics.shed.labels("uploads").inc()
        return Overloaded(
            "More uploads are on their way than this server takes at once.", retry_after_seconds(_RETRY_SECONDS)
        )


class _Body:
    """One body: how much of it has come, and since when it is awaited."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._began = self._last_piece_at = time.monotonic()
        self._received = 0
        self._is_open = True
        uploads.open += 1

    async def receive(self, receive: Receive) -> Message:
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
        self._received += size
        self._uploads.held_bytes += size
        if not message.get("more_body", False):
            self._end()
        elif self._uploads.held_bytes > limits.held_bytes:
            raise self._uploads.refusal()
        return message

    def close(self) -> None:
        """The request is answered: what was held for it is free."""
        self._end()
        self._uploads.held_bytes -= self._received

    def _end(self) -> None:
        self._uploads.open -= self._is_open
        self._is_open = False


def has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
