"""Open-loop load on a real server whose device takes a known time: `python -m benchmarks.load`.

Arrivals do not wait for answers, as people do not: requests come at a fixed rate, each timed from when it was due. The
peak is what closed-loop clients get; then the rate is a half, one, two, five and ten times that. The device is the null
backend made to take 100 ms and 5 ms an image, eight at a time, so that a small machine can be overloaded ten times
without its clients being what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.photos import make_jpeg
from tests.running import ServiceProcess, service_process

_DEVICE = """
import threading
from app.backends import null
from app.cli import main

infer = null.NullBackend.infer

def slow(backend, batch, want):
    threading.Event().wait(0.1 + 0.005 * len(batch))
    return infer(backend, batch, want)

null.NullBackend.infer = slow
main()
"""
_DEADLINE_MS = 2000
_FLAGS = ("--backend", "null", "--max-batch-size", "8", "--request-timeout-ms", str(_DEADLINE_MS))


@dataclass
class Step:
    """What one rate of arrivals was answered with; times in seconds, from when each request was due."""

    offered: float
    seconds: float
    accepted: list[float] = field(default_factory=list)
    in_time: int = 0
    """Answers before their deadline and before the last arrival: what drains afterwards is no throughput."""
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return self.in_time / self.seconds


class Clients:
    """As many connections as are needed, each kept for the next request."""

    def __init__(self, address: str, image: bytes) -> None:
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        head = f"POST /predict HTTP/1.1\r\nHost: load\r\nContent-Length: {len(image)}\r\n\r\n"
        self._request = head.encode() + image
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> int:
        """The status of one request's answer."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        await reader.readexactly(int(length[1]))
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head[9:12])

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def closed_loop(clients: Clients, count: int, seconds: float) -> float:
    """Answers a second that `count` clients get who ask again as soon as they are answered."""
    ends_at = time.monotonic() + seconds
    answers = 0

    async def one() -> None:
        nonlocal answers
        while time.monotonic() < ends_at:
            status = await clients.ask()
            answers += status == 200

    await asyncio.gather(*[one() for _ in range(count)])
    return answers / seconds


async def open_loop(clients: Clients, rate: float, seconds: float) -> Step:
    step = Step(rate, seconds)
    began = time.monotonic()

    async def one(due: float) -> None:
        status = await clients.ask()
        step.statuses[status] += 1
        if status == 200:
            now = time.monotonic()
            step.accepted.append(now - due)
            step.in_time += now - due <= _DEADLINE_MS / 1e3 and now - began <= seconds

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(one(due))
    return step


def refused_ms(service: ServiceProcess, since: int) -> float:
    """The median of the service's own times of its 503s, in milliseconds, from its log."""
    lines = [json.loads(line) for line in service.lines[since:]]
    times = [line["total_ms"] for line in lines if line.get("status") == 503]
    return statistics.median(times) if times else 0.0


async def run(address: str, service: ServiceProcess, seconds: float) -> list[str]:
    clients = Clients(address, make_jpeg(1, (320, 240)))
    peak = await closed_loop(clients, 32, seconds)
    rows = [f"peak, 32 closed-loop clients: {peak:.1f} answers/s", ""]
    rows.append("| offered | goodput/s | of the peak | p50 ms | p99 ms | refused | refused in, server side, ms |")
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for times in (0.5, 1, 2, 5, 10, 1):
        since = len(service.lines)
        step = await open_loop(clients, times * peak, seconds)
        cuts = statistics.quantiles(step.accepted, n=100)
        rows.append(
            f"| {times:g}× | {step.goodput:.1f} | {step.goodput / peak:.0%} | {cuts[49] * 1e3:.0f} | "
            f"{cuts[98] * 1e3:.0f} | {step.statuses[503]:,} | {refused_ms(service, since):.2f} |"
        )
        if others := {status: count for status, count in step.statuses.items() if status not in (200, 503)}:
            rows.append(f"others at {times:g}×: {others}")
        print(rows[-1], file=sys.stderr, flush=True)
    clients.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each rate")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(*_FLAGS, folder=Path(folder), program=_DEVICE) as service,
    ):
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert found
        rows = asyncio.run(run(found[0], service, options.seconds))
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; deadline {_DEADLINE_MS} ms"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
