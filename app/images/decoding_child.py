"""The decoder's side of a decoding process: send it images, take its answers, end it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ImageTooLarge, ServiceError
from ..processes.children import Child
from ..processes.framing import Records
from ..types import Pixels, Preprocessing
from . import decoding_messages as messages
from .exchange import BUFFERS, Exchange

_START_SECONDS = 60.0
# How long a process that closed its socket may take to end.
_EXIT_SECONDS = 5.0


class ChildEnded(Exception):
    """The process ended by itself, or could not be started."""


class ChildGarbled(Exception):
    """The process sent an answer that makes no sense."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The pixels or the error of the image in a buffer; neither where it was no longer wanted."""

    buffer: int
    pixels: Pixels | None = None
    error: ServiceError | None = None


class DecodingChild:
    """One process that decodes. It holds up to `BUFFERS` images, and answers in the order in which it was asked."""

    def __init__(self, process: Child, connection: socket.socket, exchange: Exchange) -> None:
        self.id = process.id
        self._process = process
        self._connection = connection
        self._exchange = exchange
        self._free = list(range(BUFFERS))
        # Of the images that it holds, in order: their buffers, crops and sizes.
        self._asked: deque[tuple[int, tuple[int, int], int]] = deque()
        self._told: Preprocessing | None = None
        self._records = Records(messages.RECORD)

    def fileno(self) -> int:
        """Readable when there are answers, and when the process has ended."""
        return self._connection.fileno()

    def ask(self, data: bytes, preprocessing: Preprocessing) -> int:
        """Hand an image over; returns its buffer. Raises `OSError` where the process has ended.

        Raises `ImageTooLarge` where the image, or its pixels, are larger than a buffer.
        """
        height, width = preprocessing.crop
        if max(len(data), height * width * 3, messages.MAX_ERROR_BYTES) > self._exchange.buffer_bytes:
            raise ImageTooLarge("The image has more bytes than this server's decoders take.")
        buffer = self._free[-1]
        self._exchange.put(buffer, data)
        self._exchange.want(buffer, True)
        record = messages.RECORD.pack(messages.IMAGE, buffer, len(data))
        if preprocessing is not self._told:
            record = messages.preprocessing_record(preprocessing) + record
        # Small, and the socket holds 200 kB: it never sends a part only.
        self._connection.sendall(record)
        self._told = preprocessing
        self._free.pop()
        self._asked.append((buffer, preprocessing.crop, len(data)))
        return buffer

    def forget(self, buffer: int) -> None:
        """The image there is no longer wanted: it is not decoded, unless that has begun."""
        self._exchange.want(buffer, False)

    def answers(self) -> Iterator[Answer]:
        """Its answers since the last call, one after another: those before a senseless one are valid.

        Raises `ChildEnded` or `ChildGarbled`; after these it is of no more use.
        """
        try:
            received = self._connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            raise ChildEnded() from None
        if not received:
            raise ChildEnded()
        for record in self._records.feed(received):
            yield self._answer(*record)

    def _answer(self, kind: int, buffer: int, size: int) -> Answer:
        if not self._asked or self._asked[0][0] != buffer:
            raise ChildGarbled("an answer to no question")
        _, crop, data_bytes = self._asked.popleft()
        if kind == messages.PIXELS:
            answer = Answer(buffer, pixels=self._exchange.get_pixels(buffer, *crop))
        elif kind == messages.ERROR and size <= messages.MAX_ERROR_BYTES:
            try:
                answer = Answer(buffer, error=messages.error_of(self._exchange.get(buffer, size)))
            except (ValueError, KeyError, TypeError) as fault:
                raise ChildGarbled("an error that is none of decoding's") from fault
        elif kind == messages.SKIPPED:
            answer = Answer(buffer)
        else:
            raise ChildGarbled(f"an answer of kind {kind} and {size} bytes")
        self._exchange.tidy(buffer, data_bytes)
        self._free.append(buffer)
        return answer

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit status, with a minus the signal's number; it is killed if it does not end. Blocks."""
        with self._connection:
            return self._process.wait(_EXIT_SECONDS)

    def wait_until_ready(self) -> bool:
        """Whether it could start. Blocks."""
        self._connection.settimeout(_START_SECONDS)
        with suppress(OSError):
            if self._connection.recv(1) == messages.READY:
                self._connection.setblocking(False)
                return True
        return False
