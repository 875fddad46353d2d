"""Overload on a real server: `python -m benchmarks.load`.

The demo network on the CPU, once with a tight limit (eight times what one image takes) and once with the defaults, in
one process and with two front-ends. To each such service:

- requests that come at a fixed rate and wait for nobody, as people do not: two, five, ten and twenty times the peak,
  each timed from when it was due, and from the last one on a half of the peak, which shows how long overload is felt;
- storms: 100 and 400 clients that ask again at once when they are refused.

The peak is what clients that wait for their answers get. The load generator runs on the same cores and takes more of
them the more it asks: its CPU time is measured, and goodput is a share of the peak that the cores allow which are left.

Prints a table, and writes it as JSON and as a picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

from app.bench.processes import cpu_seconds
from benchmarks.clients import Clients, post
from benchmarks.load_picture import draw
from benchmarks.machine import describe
from tests.photos import make_jpeg
from tests.running import ServiceProcess, service_process

_TIMES = (2, 5, 10, 20)
_STORMS = (100, 400)
_CALM = 0.5
_PEAK_CLIENTS = (4, 8, 16, 32)
# What the peak is measured for, with each number of clients.
_PEAK_SECONDS = 4.0
_SLO_TIMES_ONE_IMAGE = 8
_IMAGES = [make_jpeg(seed, (500, 375)) for seed in range(4)]
# An answer is as before the load where it takes at most this much longer than the slowest hundredth did then.
_AS_BEFORE = 1.5
_WINDOW_SECONDS = 0.5
_COUNTED = re.compile(r"^resnet_decode_seconds_count\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass
class Step:
    """What one load was answered with; times in seconds, from when each request was due."""

    seconds: float
    deadline: float
    accepted: list[float] = field(default_factory=list)
    in_time: int = 0
    """Answers before their deadline and before the load's end: what drains afterwards is no throughput."""
    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """Of each request: when it was due after the step's beginning, its latency, its status."""
    sent_late: list[float] = field(default_factory=list)
    """Of each request: how much later than due the generator, which shares the cores, has sent it."""

    @property
    def goodput(self) -> float:
        """Answers in time, a second."""
        return self.in_time / self.seconds

    def percentile(self, percent: int) -> float:
        """Of the latencies of what was accepted."""
        return statistics.quantiles(self.accepted, n=100)[percent - 1] if len(self.accepted) > 1 else float("nan")

    @property
    def generator_late(self) -> float:
        """The 99th percentile; 0 where requests are sent without a plan."""
        return statistics.quantiles(self.sent_late, n=100)[98] if len(self.sent_late) > 1 else 0.0

    def add(self, due: float, latency: float, status: int) -> None:
        self.answers.append((due, latency, status))
        self.statuses[status] += 1
        if status == 200:
            self.accepted.append(latency)
            self.in_time += latency <= self.deadline and due + latency <= self.seconds

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
    """One load; latencies in milliseconds, rates a second."""

    load: str
    """"2x", or "storm of 100"."""
    asked: float
    goodput: float
    allowed: float
    """The peak that the cores allow which the load generator leaves."""
    share: float
    """Goodput as a share of what is allowed."""
    p50_ms: float
    p99_ms: float
    decoded_per_answer: float
    refused: int
    late: float
    """504s as a share of what was accepted."""
    others: dict[int, int]
    generator_cores: float
    generator_late_ms: float
    """How late the slowest hundredth of the requests was sent; part of the latencies."""


@dataclass(frozen=True)
class Case:
    """One service and all its loads."""

    limit: str
    """"tight" or "defaults"."""
    processes: str
    deadline_ms: float
    peak: float
    peak_clients: int
    rows: list[Row]
    recovery_seconds: float | None
    """After the heaviest load's last arrival: until answers were again what they were at half of the peak. None: not
    while it was watched."""
    watched_seconds: float


@dataclass(frozen=True)
class Report:
    machine: str
    network: str
    cases: list[Case]


@dataclass
class Cores:
    """What this process, the load generator, takes of the machine."""

    count: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    began: float = field(default_factory=time.monotonic)
    cpu_began: float = field(default_factory=time.process_time)

    @property
    def taken(self) -> float:
        return (time.process_time() - self.cpu_began) / (time.monotonic() - self.began)

    @property
    def left(self) -> float:
        return self.count - self.taken


class Load:
    """One service under load."""

    def __init__(self, address: str, deadline: float, seconds: float) -> None:
        self._address = address
        self._deadline = deadline
        self._seconds = seconds
        self._clients = Clients(address, [post("/predict", image, "image/jpeg") for image in _IMAGES])
        self._peak = self._left_at_peak = 0.0

    async def case(self, limit: str, processes: str) -> Case:
        best, clients = 0.0, 0
        for count in _PEAK_CLIENTS:
            cores = Cores()
            tally = await self._clients.closed_loop(count, _PEAK_SECONDS)
            if tally.rate > best:
                best, clients, self._peak, self._left_at_peak = tally.rate, count, tally.rate, cores.left
        _say(f"{limit}, {processes}: peak {best:.1f}/s")
        calm = await self._calm()
        rows, recovery = [], None
        for times in _TIMES:
            row, after = await self._measured(f"{times}x", times)
            rows.append(row)
            if after is not None:
                recovery = after.settled_after(_AS_BEFORE * calm)
        for count in _STORMS:
            row, _ = await self._measured(f"storm of {count}", count)
            rows.append(row)
        self._clients.close()
        return Case(limit, processes, self._deadline * 1e3, best, clients, rows, recovery, self._seconds)

    async def _calm(self) -> float:
        """The 99th percentile at half of the peak."""
        async with asyncio.TaskGroup() as tasks:
            step = await self._offer(_CALM * self._peak, tasks)
        return step.percentile(99)

    async def _measured(self, name: str, load: int) -> tuple[Row, Step | None]:
        before = await asyncio.to_thread(self._decoded)
        cores = Cores()
        after = None
        async with asyncio.TaskGroup() as tasks:
            if name.startswith("storm"):
                step = await self._storm(load, tasks)
            else:
                step = await self._offer(load * self._peak, tasks)
            taken, left = cores.taken, cores.left
            if load == max(_TIMES):
                after = await self._offer(_CALM * self._peak, tasks)
        decoded = await asyncio.to_thread(self._decoded) - before
        answered = step.statuses[200] + (after.statuses[200] if after else 0)
        late = step.statuses[504] / max(1, step.statuses[504] + step.statuses[200])
        allowed = self._peak * left / self._left_at_peak
        row = Row(
            name,
            sum(step.statuses.values()) / self._seconds,
            step.goodput,
            allowed,
            step.goodput / allowed,
            step.percentile(50) * 1e3,
            step.percentile(99) * 1e3,
            decoded / max(1, answered),
            step.statuses[503],
            late,
            {status: count for status, count in step.statuses.items() if status not in (200, 503, 504)},
            taken,
            step.generator_late * 1e3,
        )
        _say(
            f"  {name}: {row.goodput:.1f}/s, {row.share:.0%} of {allowed:.1f}; p99 {row.p99_ms:.0f} ms "
            f"({row.generator_late_ms:.0f} ms of it late sending); "
            f"{row.decoded_per_answer:.2f} decoded an answer; {step.statuses}"
        )
        return row, after

    async def _offer(self, rate: float, tasks: asyncio.TaskGroup) -> Step:
        """Ask `rate` times a second; back after the last was due, while `tasks` still wait for answers."""
        step = Step(self._seconds, self._deadline)
        began = time.monotonic()

        async def one(due: float) -> None:
            step.sent_late.append(time.monotonic() - due)
            status = await self._clients.ask()
            step.add(due - began, time.monotonic() - due, status)

        for number in range(int(rate * self._seconds)):
            due = began + number / rate
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            tasks.create_task(one(due))
        return step

    async def _storm(self, count: int, tasks: asyncio.TaskGroup) -> Step:
        """`count` clients that ask again at once, whatever they are answered."""
        step = Step(self._seconds, self._deadline)
        began = time.monotonic()
        ends_at = began + self._seconds

        async def one() -> None:
            while (asked := time.monotonic()) < ends_at:
                status = await self._clients.ask()
                step.add(asked - began, time.monotonic() - asked, status)

        for _ in range(count):
            tasks.create_task(one())
        await asyncio.sleep(self._seconds)
        return step

    def _decoded(self) -> float:
        """Images that the service has decoded since its start."""
        with urllib.request.urlopen(f"{self._address}/metrics", timeout=30) as answer:
            return sum(float(count) for count in _COUNTED.findall(answer.read().decode()))


async def one_image_seconds(address: str) -> float:
    """The median time of an image that comes alone."""
    clients = Clients(address, [post("/predict", image, "image/jpeg") for image in _IMAGES])
    tally = await clients.closed_loop(1, _PEAK_SECONDS)
    clients.close()
    return statistics.median(tally.latencies)


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[tuple[ServiceProcess, str]]:
    with service_process("--weights", "offline-demo", *flags, folder=folder) as service:
        found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:", 120))
        assert found
        yield service, found[0]


def measure(seconds: float, limits: Sequence[str], front_ends: Sequence[int]) -> Report:
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with started(folder) as (_, address):
            slo_ms = _SLO_TIMES_ONE_IMAGE * uvloop.run(one_image_seconds(address)) * 1e3
        for limit in limits:
            for count in front_ends:
                flags = ["--http-workers", str(count)]
                deadline_ms = 30_000.0
                if limit == "tight":
                    deadline_ms = round(slo_ms)
                    flags += ["--slo-p99-ms", str(deadline_ms)]
                with started(folder, *flags) as (service, address):
                    began = cpu_seconds(service.process.pid), time.monotonic()
                    processes = "one process" if count == 1 else f"{count} front-ends"
                    cases.append(uvloop.run(Load(address, deadline_ms / 1e3, seconds).case(limit, processes)))
                    used = (cpu_seconds(service.process.pid) - began[0]) / (time.monotonic() - began[1])
                    _say(f"  the service used {used:.2f} cores")
    return Report(describe("onnxruntime", "uvicorn"), "the demo network, 500×375 JPEGs", cases)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def table(report: Report) -> str:
    """The report for a terminal, as Markdown tables."""
    lines = [report.machine, report.network]
    for case in report.cases:
        found = case.recovery_seconds
        told = f"not within {case.watched_seconds:g} s" if found is None else f"{found:.1f} s"
        lines += [
            "",
            f"{case.limit} ({case.deadline_ms:.0f} ms), {case.processes}: peak {case.peak:.1f} answers/s "
            f"({case.peak_clients} clients); as before the load again {told} after the last arrival of "
            f"{max(_TIMES)}x",
            "",
            "| load | asked/s | goodput/s | allowed/s | share | p50 ms | p99 ms | decoded ÷ answered | refused | "
            "504 | others | generator, cores | generator, p99 ms late |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in case.rows:
            others = ", ".join(f"{n} x {status or 'no answer'}" for status, n in sorted(row.others.items())) or "none"
            lines.append(
                f"| {row.load} | {row.asked:.0f} | {row.goodput:.1f} | {row.allowed:.1f} | {row.share:.2f} | "
                f"{row.p50_ms:.0f} | {row.p99_ms:.0f} | {row.decoded_per_answer:.2f} | {row.refused:,} | "
                f"{row.late:.1%} | {others} | {row.generator_cores:.2f} | {row.generator_late_ms:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each load")
    parser.add_argument("--limits", nargs="+", choices=("tight", "defaults"), default=("tight", "defaults"))
    parser.add_argument("--front-ends", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--output", type=Path, default=Path("build"), help="the folder for load.json and load.png")
    options = parser.parse_args()
    report = measure(options.seconds, options.limits, options.front_ends)
    print(table(report))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "load.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    draw(report.cases, options.output / "load.png")
    print(f"\nThe curves: {options.output / 'load.png'}; the figures: {options.output / 'load.json'}")


if __name__ == "__main__":
    main()
