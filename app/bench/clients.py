"""HTTP clients that use little CPU: connections are kept, requests are prepared once, no HTTP library is used.

On a small machine the load generator takes its CPU time from the server, so its cost is part of every figure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from .answers import Answer, Head, Read, parse_head, read_answer
from .target import Target


@dataclass(frozen=True, slots=True)
class Request:
    """One prepared request, head and body."""

    data: bytes
    expected: tuple[int, ...] | None = None
    """The classes with which a right answer begins, if known."""


def prepare(
    target: Target,
    body: bytes,
    expected: Sequence[int] | None = None,
    *,
    path: str = "/predict",
    content_type: str = "application/octet-stream",
) -> Request:
    """A POST of one image."""
    head = (
        f"POST {target.prefix}{path} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: resnet-serve-bench\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, None if expected is None else tuple(expected))


class ConnectionFailed(Exception):
    """No answer came; the message is a short reason, equal for all failures of its kind."""


class Connection(asyncio.Protocol):
    """Sends one request at a time; kept for the next one unless the server closes it."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._head: Head | None = None
        self._head_bytes = b""
        self._waiter: asyncio.Future[tuple[bytes, Head, bytes]] | None = None

    async def ask(self, data: bytes) -> tuple[bytes, Head, bytes]:
        """The answer's head, its parts, and its body. Raises `ConnectionFailed`."""
        if self._transport is None or not self.is_open:
            raise ConnectionFailed("closed")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._waiter

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one, except for its class.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head_bytes = bytes(self._received[: end + 2])
            del self._received[: end + 4]
            try:
                self._head = parse_head(self._head_bytes)
            except ValueError as error:
                self._fail(str(error))
                return
        # A chunked body keeps its framing: only other servers send one, and for those only the status is read.
        length = self._head.length
        if not self._received.endswith(b"0\r\n\r\n") if length is None else len(self._received) < length:
            return
        head, body = self._head, bytes(self._received[:length])
        self._head = None
        self._received.clear()
        if head.closes:
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result((self._head_bytes, head, body))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("closed" if error is None else _kind(error))

    def _fail(self, reason: str) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionFailed(reason))


class Clients:
    """A pool of up to `most` connections; further requests wait for one."""

    def __init__(self, target: Target, requests: Sequence[Request], most: int = 4096, read: Read = read_answer) -> None:
        self._target = target
        self._requests = requests
        self._read = read
        self._tls = target.tls()
        self._idle: list[Connection] = []
        self._open = asyncio.Semaphore(most)

    async def ask(self, number: int) -> Answer:
        """Send request `number`, the prepared ones in turn."""
        request = self._requests[number % len(self._requests)]
        async with self._open:
            connection: Connection | None = None
            try:
                connection = await self._take()
                head_bytes, head, body = await connection.ask(request.data)
            except ConnectionFailed as failure:
                return Answer(None, error=str(failure))
            except OSError as error:
                return Answer(None, error=_kind(error))
            except asyncio.CancelledError:
                if connection is not None:
                    connection.close()
                raise
            if connection.is_open:
                self._idle.append(connection)
        return self._read(head_bytes, head.status, body, request.expected)

    async def body_of(self, number: int) -> bytes:
        """The body of the answer to request `number`. Raises `ConnectionFailed` or `OSError`."""
        connection = await self._take()
        try:
            _, _, body = await connection.ask(self._requests[number % len(self._requests)].data)
        finally:
            connection.close()
        return body

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        target = self._target
        name = target.host if self._tls else None
        _, made = await loop.create_connection(
            Connection, target.host, target.port, ssl=self._tls, server_hostname=name
        )
        return made


def _kind(error: BaseException) -> str:
    """A short reason, equal for all failures of its kind."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    return type(error).__name__
