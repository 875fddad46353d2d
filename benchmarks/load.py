"""Open-loop load on a real server whose device takes a known time: `python -m benchmarks.load`.

Arrivals do not wait for answers, as people do not: requests come at a fixed rate, each timed from when it was due. The
peak is what closed-loop clients get; then the rate is a half, one, two, five and ten times that, and from the moment on
in which the last and heaviest load ends a half again, which shows how long it is felt. The device is the null backend
made to take 100 ms and 5 ms an image, eight at a time, so that a small machine can be overloaded ten times without its
clients being what is measured.

Prints a table, and writes it as JSON and as a picture.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.clients import Clients, post
from benchmarks.load_picture import draw
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
_TIMES = (0.5, 1, 2, 5, 10)
# An answer is as before the load where it takes at most this much longer than the slowest hundredth did then.
_AS_BEFORE = 1.5
_WINDOW_SECONDS = 0.5


@dataclass
class Step:
    """What one rate of arrivals was answered with; times in seconds, from when each request was due."""

    offered: float
    seconds: float
    accepted: list[float] = field(default_factory=list)
    in_time: int = 0
    """Answers before their deadline and before the last arrival: what drains afterwards is no throughput."""
    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """Of each request: when it was due after the step's beginning, its latency, its status."""

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return self.in_time / self.seconds

    def percentile(self, percent: int) -> float:
        """Of the latencies of what was accepted."""
        return statistics.quantiles(self.accepted, n=100)[percent - 1] if len(self.accepted) > 1 else float("nan")

    def add(self, due: float, latency: float, status: int) -> None:
        self.answers.append((due, latency, status))
        self.statuses[status] += 1
        if status == 200:
            self.accepted.append(latency)
            self.in_time += latency <= _DEADLINE_MS / 1e3 and due + latency <= self.seconds

    def settled_after(self, longest: float) -> float | None:
        """Seconds until all was well for good: until the end of the last half second in which over a twentieth of the
        requests were refused or took over `longest`. None where that is the last one: it was not well yet.
        """
        windows: dict[int, list[bool]] = {}
        for due, latency, status in self.answers:
            windows.setdefault(int(due / _WINDOW_SECONDS), []).append(status == 200 and latency <= longest)
        unwell = [window for window, well in windows.items() if well.count(False) > 0.05 * len(well)]
        if unwell and max(unwell) == max(windows):
            return None
        return (max(unwell) + 1) * _WINDOW_SECONDS if unwell else 0.0


@dataclass(frozen=True)
class Row:
    """One line of the report; latencies and times in milliseconds, rates a second."""

    times_peak: float
    offered: float
    goodput: float
    share_of_peak: float
    p50_ms: float
    p99_ms: float
    refused: int
    refused_in_ms: float
    """The median time of a 503, by the service's own clock."""
    others: dict[int, int]


@dataclass(frozen=True)
class Report:
    machine: str
    device: str
    deadline_ms: int
    peak: float
    rows: list[Row]
    recovery_seconds: float | None
    """After the heaviest load's last arrival: until answers were again what they were at half of the peak. None: not
    while it was watched."""
    watched_seconds: float


async def offer(clients: Clients, rate: float, seconds: float, tasks: asyncio.TaskGroup) -> Step:
    """Ask `rate` times a second; back after the last has been asked, while `tasks` still wait for answers."""
    step = Step(rate, seconds)
    began = time.monotonic()

    async def one(due: float) -> None:
        status = await clients.ask()
        step.add(due - began, time.monotonic() - due, status)

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


async def run(address: str, service: ServiceProcess, seconds: float) -> Report:
    """Measure the peak, every rate, and the recovery."""
    clients = Clients(address, [post("/predict", make_jpeg(1, (320, 240)), "image/jpeg")])
    _say(f"the peak, {seconds:g} s")
    peak = (await clients.closed_loop(32, seconds)).rate
    rows: list[Row] = []
    calm = 0.0
    recovery: float | None = None
    for times in _TIMES:
        _say(f"{times:g}x the peak of {peak:.1f}/s, {seconds:g} s")
        since = len(service.lines)
        after = None
        async with asyncio.TaskGroup() as tasks:
            step = await offer(clients, times * peak, seconds, tasks)
            if times == max(_TIMES):
                after = await offer(clients, min(_TIMES) * peak, seconds, tasks)
        if times == min(_TIMES):
            calm = step.percentile(99)
        if after is not None:
            recovery = after.settled_after(_AS_BEFORE * calm)
        rows.append(
            Row(
                times,
                step.offered,
                step.goodput,
                step.goodput / peak,
                step.percentile(50) * 1e3,
                step.percentile(99) * 1e3,
                step.statuses[503],
                refused_ms(service, since),
                {status: count for status, count in step.statuses.items() if status not in (200, 503)},
            )
        )
    clients.close()
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    device = "null backend, 100 ms + 5 ms an image, batches of up to 8"
    return Report(machine, device, _DEADLINE_MS, peak, rows, recovery, seconds)


def _say(what: str) -> None:
    print(f"measuring {what} …", file=sys.stderr, flush=True)


def table(report: Report) -> str:
    """The report for a terminal, as a Markdown table."""
    lines = [
        report.machine,
        f"{report.device}; deadline {report.deadline_ms} ms",
        f"peak, 32 closed-loop clients: {report.peak:.1f} answers/s",
        "",
        "| offered | goodput/s | of the peak | p50 ms | p99 ms | refused | refused in, server side, ms | others |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report.rows:
        others = (
            ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(row.others.items())) or "none"
        )
        lines.append(
            f"| {row.times_peak:g}x | {row.goodput:.1f} | {row.share_of_peak:.0%} | {row.p50_ms:.0f} | "
            f"{row.p99_ms:.0f} | {row.refused:,} | {row.refused_in_ms:.2f} | {others} |"
        )
    found = report.recovery_seconds
    told = f"not within {report.watched_seconds:g} s" if found is None else f"{found:.1f} s"
    lines += ["", f"as before the load again {told} after its last arrival"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each rate")
    parser.add_argument("--output", type=Path, default=Path("build"), help="the folder for load.json and load.png")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(*_FLAGS, folder=Path(folder), program=_DEVICE) as service,
    ):
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
        assert found
        report = asyncio.run(run(found[0], service, options.seconds))
    print(table(report))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "load.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    draw(report.peak, report.rows, report.deadline_ms, options.output / "load.png")
    print(f"\nThe curve: {options.output / 'load.png'}; the figures: {options.output / 'load.json'}")


if __name__ == "__main__":
    main()
