"""A connection's last answer, written by the connection itself, and the data that the client sends after it."""

from __future__ import annotations

import asyncio

from ..api.error_answers import retry_after
from ..api.request_context import RequestContext
from ..api.request_id import new_request_id
from ..errors import ServiceError
from .uvicorn_internals import STATUS_LINE, FlowControl

# Closing a socket with unread data resets the connection, and the client then never sees the answer: so many bytes are
# read and discarded, for so long.
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 2.0


def last_answer(error: ServiceError, context: RequestContext, root_path: str) -> bytes:
    """The complete answer to a request that does not reach the app. A request without an id gets one."""
    context.request_id = context.request_id or new_request_id()
    body = context.errors.body(error, context.request_id, root_path)
    head = {
        "content-type": context.errors.media_type,
        "content-length": str(len(body)),
        "x-request-id": context.request_id,
        "connection": "close",
    }
    if (seconds := retry_after(error)) is not None:
        head["retry-after"] = str(seconds)
    lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in head.items())
    return STATUS_LINE[error.status] + lines + b"\r\n" + body


class Discard:
    """Reads and discards data that arrives after the last answer, within limits of size and time."""

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._flow = flow
        self._loop = loop
        self._received = 0

    def begin(self) -> None:
        """End the sending side; keep reading, and close the connection after a while."""
        self._flow.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_DISCARD_SECONDS, self._transport.close)

    def drop(self, data: bytes) -> None:
        """Discard a piece of data; above the limit, abort the connection."""
        self._received += len(data)
        if self._received > _DISCARD_BYTES:
            self._transport.abort()
