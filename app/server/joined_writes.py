"""An answer's head and body as one write."""

from __future__ import annotations

import asyncio
from typing import Any

# An interim answer, which may precede the answer.
_CONTINUE = b"HTTP/1.1 100 "


class JoinedWrites:
    """Replaces the transport for one answer: the head waits for the body, and both are one write.

    uvicorn writes them separately, and uvloop sends each at once: two system calls, and the client wakes up twice. An
    answer without a body (to HEAD) must not be written through this.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if self._head is None and not data.startswith(_CONTINUE):
            self._head = data
        elif self._head:
            self._transport.writelines((self._head, data))
            self._head = b""
        else:
            self._transport.write(data)

    def close(self) -> None:
        # uvloop raises for a write to a connection that is closed.
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
