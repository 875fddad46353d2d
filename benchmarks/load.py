"""Overload on a real server: `python -m benchmarks.load`.

The demo network on the CPU, once with a tight limit (eight times what one image takes) and once with the defaults, in
one process and with two front-ends. To each such service:

- requests at a fixed rate that do not wait for earlier answers: two, five, ten and twenty times the peak, each timed
  from when it was due; after the last one half of the peak, which shows how long the overload is felt;
- storms: 100 and 400 clients that ask again at once when they are refused.

The peak is measured with clients that wait for their answers. The load generator runs on the same cores and takes more
of them the more it asks: its CPU time is measured, and goodput is a share of the peak that the remaining cores allow.

Prints tables, and writes them as JSON and as a picture.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import statistics
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from app.bench.answers import Answer, read_status
from app.bench.clients import Clients, prepare
from app.bench.loops import closed_loop
from app.bench.processes import cpu_seconds
from app.bench.target import Target
from benchmarks.load_picture import draw
from benchmarks.report import heading, options_of, say, table
from benchmarks.turns import our_service, running
from tests.photos import make_jpeg

_TIMES = (2, 5, 10, 20)
_STORMS = (100, 400)
_CALM = 0.5
_PEAK_CLIENTS = (4, 8, 16, 32)
# For each number of clients.
_PEAK_SECONDS = 4.0
_GIVE_UP_SECONDS = 60.0
_NO_ANSWER = 0
_SLO_TIMES_ONE_IMAGE = 8
_IMAGES = [make_jpeg(seed, (500, 375)) for seed in range(4)]
# After the load, an answer is as quick as before if it takes at most this many times the 99th percentile before it.
_AS_BEFORE = 1.5
_WINDOW_SECONDS = 0.5
_COUNTED = re.compile(r"^resnet_decode_seconds_count\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass
class Step:
    """The answers to one load; times in seconds, from when each request was due."""

    seconds: float
    deadline: float
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    """For each request: when it was due after the step's beginning, its latency, its status."""
    sent_late: list[float] = field(default_factory=list)
    """For each request with a due time: how late the generator, which shares the cores, sent it."""

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status in self.answers)

    @property
    def goodput(self) -> float:
        """Answers a second before their deadline and before the load's end: later answers are no throughput."""
        good = [(due, latency) for due, latency, status in self.answers if status == 200]
        return sum(latency <= self.deadline and due + latency <= self.seconds for due, latency in good) / self.seconds

    def latency(self, percent: int) -> float:
        """A percentile of the latencies of accepted requests."""
        return _percentile([latency for _, latency, status in self.answers if status == 200], percent, math.nan)

    def settled_after(self, longest: float) -> float | None:
        """Seconds until the end of the last half second in which over a twentieth of the requests were refused or took
        over `longest`. None where that is the step's last half second.
        """
        windows: dict[int, list[bool]] = {}
        for due, latency, status in self.answers:
            windows.setdefault(int(due / _WINDOW_SECONDS), []).append(status == 200 and latency <= longest)
        unwell = [window for window, well in windows.items() if well.count(False) > 0.05 * len(well)]
        if unwell and max(unwell) == max(windows):
            return None
        return (max(unwell) + 1) * _WINDOW_SECONDS if unwell else 0.0


def _percentile(values: Sequence[float], percent: int, none: float) -> float:
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else none


# The columns of one load's row, with their formats. "allowed/s" is the peak that the cores left by the load generator
# allow, "share" goodput as a share of it, "504" a share of the accepted requests. The generator's lateness is part of
# the latencies.
_COLUMNS = {
    **{"load": "", "asked/s": ".0f", "goodput/s": ".1f", "allowed/s": ".1f", "share": ".2f", "p50 ms": ".0f"},
    **{"p99 ms": ".0f", "decoded ÷ answered": ".2f", "refused": ",", "504": ".1%", "others": ""},
    **{"generator, cores": ".2f", "generator, p99 ms late": ".0f"},
}
Row = dict[str, Any]


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
    """From the heaviest load's last arrival until answers were again as quick as at half of the peak. None: not within
    `watched_seconds`."""
    watched_seconds: float


@dataclass(frozen=True)
class Report:
    machine: str
    network: str
    cases: list[Case]


@dataclass
class Cores:
    """The cores that this process, the load generator, uses, and those that it leaves."""

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

    def __init__(self, target: Target, deadline: float, seconds: float) -> None:
        self._target = target
        self._deadline = deadline
        self._seconds = seconds
        self._requests = 0
        self._clients = Clients(target, [prepare(target, image) for image in _IMAGES], most=1 << 20, read=read_status)
        self._peak = self._left_at_peak = 0.0

    async def ask(self, number: int) -> Answer:
        """The next image, whatever the number: all steps send the images in turn."""
        self._requests += 1
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                return await self._clients.ask(self._requests)
        except TimeoutError:
            return Answer(None, error="no answer")

    async def case(self, limit: str, processes: str) -> Case:
        clients = 0
        for count in _PEAK_CLIENTS:
            cores = Cores()
            step = await closed_loop(self.ask, clients=count, seconds=_PEAK_SECONDS, target_ms=math.inf)
            if step.throughput > self._peak:
                clients, self._peak, self._left_at_peak = count, step.throughput, cores.left
        say(f"{limit}, {processes}: peak {self._peak:.1f}/s")
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
        self.close()
        return Case(limit, processes, self._deadline * 1e3, self._peak, clients, rows, recovery, self._seconds)

    def close(self) -> None:
        self._clients.close()

    async def _calm(self) -> float:
        """The 99th percentile at half of the peak."""
        async with asyncio.TaskGroup() as tasks:
            step = await self._offer(_CALM * self._peak, tasks)
        return step.latency(99)

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
        statuses = step.statuses
        answered = statuses[200] + (after.statuses[200] if after else 0)
        allowed = self._peak * left / self._left_at_peak
        others = {status or "no answer": n for status, n in sorted(statuses.items()) if status not in (200, 503, 504)}
        row = {
            "load": name,
            "asked/s": len(step.answers) / self._seconds,
            "goodput/s": step.goodput,
            "allowed/s": allowed,
            "share": step.goodput / allowed,
            "p50 ms": step.latency(50) * 1e3,
            "p99 ms": step.latency(99) * 1e3,
            "decoded ÷ answered": decoded / max(1, answered),
            "refused": statuses[503],
            "504": statuses[504] / max(1, statuses[504] + statuses[200]),
            "others": ", ".join(f"{n} x {status}" for status, n in others.items()) or "none",
            "generator, cores": taken,
            "generator, p99 ms late": _percentile(step.sent_late, 99, 0.0) * 1e3,
        }
        say("  " + ", ".join(f"{column} {cell}" for column, cell in zip(_COLUMNS, _cells(row), strict=True)))
        return row, after

    async def _offer(self, rate: float, tasks: asyncio.TaskGroup) -> Step:
        """Ask `rate` times a second. Returns after the last request was due, while `tasks` still wait for answers."""
        step = Step(self._seconds, self._deadline)
        began = time.monotonic()

        async def one(due: float) -> None:
            step.sent_late.append(time.monotonic() - due)
            answer = await self.ask(0)
            step.answers.append((due - began, time.monotonic() - due, answer.status or _NO_ANSWER))

        for number in range(int(rate * self._seconds)):
            due = began + number / rate
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            tasks.create_task(one(due))
        return step

    async def _storm(self, count: int, tasks: asyncio.TaskGroup) -> Step:
        """`count` clients that ask again at once, whatever the answer."""
        step = Step(self._seconds, self._deadline)
        began = time.monotonic()

        async def ask(number: int) -> Answer:
            asked = time.monotonic()
            answer = await self.ask(number)
            step.answers.append((asked - began, time.monotonic() - asked, answer.status or _NO_ANSWER))
            return answer

        tasks.create_task(closed_loop(ask, clients=count, seconds=self._seconds, target_ms=math.inf))
        await asyncio.sleep(self._seconds)
        return step

    def _decoded(self) -> float:
        """Images that the service has decoded since its start."""
        with urllib.request.urlopen(f"{self._target.url}/metrics", timeout=30) as answer:
            return sum(float(count) for count in _COUNTED.findall(answer.read().decode()))


async def one_image_ms(target: Target) -> float:
    """The median time of an image that comes alone."""
    load = Load(target, 0.0, 0.0)
    step = await closed_loop(load.ask, clients=1, seconds=_PEAK_SECONDS, target_ms=math.inf)
    load.close()
    assert step.latency_ms is not None
    return step.latency_ms.p50


async def measure(seconds: float, limits: Sequence[str], front_ends: Sequence[int]) -> Report:
    cases = []
    demo = ("--weights", "offline-demo")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with running(our_service("alone", *demo, bodies=_IMAGES), folder) as service:
            slo_ms = round(_SLO_TIMES_ONE_IMAGE * await one_image_ms(service.target))
        for limit in limits:
            for count in front_ends:
                deadline_ms, flags = (slo_ms, ("--slo-p99-ms", str(slo_ms))) if limit == "tight" else (30_000, ())
                processes = "one process" if count == 1 else f"{count} front-ends"
                server = our_service(processes, *demo, *flags, bodies=_IMAGES, http_workers=str(count))
                async with running(server, folder) as service:
                    began = cpu_seconds(service.pid), time.monotonic()
                    cases.append(await Load(service.target, deadline_ms / 1e3, seconds).case(limit, processes))
                    used = (cpu_seconds(service.pid) - began[0]) / (time.monotonic() - began[1])
                    say(f"  the service used {used:.2f} cores")
    return Report(heading(), "the demo network, 500×375 JPEGs", cases)


def tables_of(report: Report) -> str:
    """The report as Markdown tables."""
    parts = [report.machine, report.network]
    for case in report.cases:
        found = case.recovery_seconds
        recovery = f"not within {case.watched_seconds:g} s" if found is None else f"{found:.1f} s"
        parts.append(
            f"\n{case.limit} ({case.deadline_ms:.0f} ms), {case.processes}: peak {case.peak:.1f} answers/s "
            f"({case.peak_clients} clients); as before the load again {recovery} after the last arrival of "
            f"{max(_TIMES)}x\n"
        )
        parts.append(table(list(_COLUMNS), [_cells(row) for row in case.rows]))
    return "\n".join(parts)


def _cells(row: Row) -> list[str]:
    return [format(row[column], digits) for column, digits in _COLUMNS.items()]


def main() -> None:
    parser = options_of(__doc__, seconds=10.0)
    parser.add_argument("--limits", nargs="+", choices=("tight", "defaults"), default=("tight", "defaults"))
    parser.add_argument("--front-ends", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--output", type=Path, default=Path("build"), help="the folder for load.json and load.png")
    options = parser.parse_args()
    report = uvloop.run(measure(options.seconds, options.limits, options.front_ends))
    print(tables_of(report))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "load.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    draw(report.cases, options.output / "load.png")
    print(f"\nThe curves: {options.output / 'load.png'}; the figures: {options.output / 'load.json'}")


if __name__ == "__main__":
    main()
