"""Clients that cost little themselves: raw sockets, kept open, with requests that were made beforehand."""

from __future__ import annotations

import asyncio
import itertools
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

NONE = "–"
"""In a table, where too little was answered for a figure."""
NO_ANSWER = 0
"""Stands for a status where none came: the connection failed, or nothing came in time."""
_GIVE_UP_SECONDS = 60.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A request, whole."""
    head = f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Tally:
    """What a run of requests came to."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of the answers with status 200, in seconds."""
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def is_good(self) -> bool:
        """Whether there is enough for percentiles."""
        return len(self.latencies) >= 2


def percentile_ms(rounds: Sequence[Tally], percent: int, digits: int = 0) -> str:
    """The median of the rounds' percentiles; of those in which the server answered."""
    found = [statistics.quantiles(tally.latencies, n=100)[percent - 1] for tally in rounds if tally.is_good]
    return f"{statistics.median(found) * 1e3:.{digits}f}" if found else NONE


def ratios_of(rounds: Sequence[Tally], others: Sequence[Tally]) -> list[float]:
    """Of the rates, round by round; of the rounds in which both answered."""
    pairs = zip(rounds, others, strict=True)
    return [own.rate / other.rate for own, other in pairs if own.is_good and other.is_good]


class Clients:
    """As many connections as are needed, each kept for the next request; `requests` in turn."""

    def __init__(self, address: str, requests: Sequence[bytes], give_up_seconds: float = _GIVE_UP_SECONDS) -> None:
        self._give_up_seconds = give_up_seconds
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        self._requests = itertools.cycle(requests)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> int:
        """The status of one request's answer, or `NO_ANSWER`."""
        try:
            async with asyncio.timeout(self._give_up_seconds):
                return await self._ask()
        except (OSError, asyncio.IncompleteReadError):
            return NO_ANSWER

    async def _ask(self) -> int:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(next(self._requests))
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length:
                await reader.readexactly(int(length[1]))
            else:
                await _read_chunks(reader)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head[9:12])

    async def closed_loop(self, count: int, seconds: float) -> Tally:
        """`count` clients that ask again as soon as they are answered, for `seconds`."""
        tally = Tally()
        began = time.monotonic()

        async def one() -> None:
            while (asked := time.monotonic()) < began + seconds:
                status = await self.ask()
                tally.statuses[status] += 1
                if status == 200:
                    tally.latencies.append(time.monotonic() - asked)
                elif status == NO_ANSWER:
                    # Who refuses connections would be asked thousands of times a second.
                    await asyncio.sleep(0.05)

        await asyncio.gather(*[one() for _ in range(count)])
        # To the last answer: what was asked in time is counted with the time that it took.
        tally.seconds = time.monotonic() - began
        return tally

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def _read_chunks(reader: asyncio.StreamReader) -> None:
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
    await reader.readline()
