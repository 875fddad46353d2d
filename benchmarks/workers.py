"""The service as one process and as several, on the same load in turn: `python -m benchmarks.workers [COUNT ...]`.

All of them run throughout, and the load goes from one to the next, so that a machine that changes its pace changes it
for all. A ratio is the median of the rounds' ratios to the first count. CPU is that of all processes of the service for
each answer, which other work on the machine does not change much; memory is proportional (PSS), so that what processes
share is counted once.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import re
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from skimage import data

from app.bench.processes import cpu_seconds, family
from app.resources import available_cpus
from benchmarks.clients import NONE, Clients, Tally, percentile_ms, post, ratios_of
from tests.photos import encode
from tests.running import ServiceProcess, service_process

_WARM_UP_SECONDS = 2.0


@dataclass
class Contestant:
    """The service with `workers` front-ends."""

    workers: int
    service: ServiceProcess
    rounds: list[Tally] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """For each answer, by round."""

    def memory_megabytes(self) -> float:
        rollups = [
            Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii") for pid in family(self.service.process.pid)
        ]
        return sum(int(size) for each in rollups for size in re.findall(r"^Pss: +(\d+) kB", each, re.MULTILINE)) / 1e3

    def measure(self, requests: list[bytes], clients: int, seconds: float) -> None:
        pid = self.service.process.pid
        before = cpu_seconds(pid)
        tally = asyncio.run(_load(self.service.address, requests, clients, seconds))
        self.rounds.append(tally)
        self.cpu_seconds.append((cpu_seconds(pid) - before) / max(1, len(tally.latencies)))


async def _load(address: str, requests: list[bytes], clients: int, seconds: float) -> Tally:
    connections = Clients(address, requests)
    try:
        return await connections.closed_loop(clients, seconds)
    finally:
        connections.close()


def photos() -> list[bytes]:
    """Four of scikit-image's, 500 × 375."""
    names = ("astronaut", "coffee", "chelsea", "rocket")
    return [
        encode(Image.fromarray(getattr(data, name)()).resize((500, 375), Image.Resampling.LANCZOS), quality=95)
        for name in names
    ]


def report(contestants: list[Contestant], rounds: int, seconds: float, clients: int) -> list[str]:
    first = contestants[0]
    lines = [
        f"{available_cpus()} CPUs ({platform.machine()}), Python {platform.python_version()}; {clients} closed-loop "
        f"clients, medians of {rounds} rounds of {seconds:g} s",
        "",
        "| front-ends | answers/s | to the first | p50 ms | p99 ms | CPU ms an answer | memory MB (PSS) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in contestants:
        ratios = ratios_of(each.rounds, first.rounds)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else NONE
        lines.append(
            f"| {each.workers} | {statistics.median(tally.rate for tally in each.rounds):.0f} | "
            f"{spread} | {percentile_ms(each.rounds, 50, 1)} | {percentile_ms(each.rounds, 99, 1)} | "
            f"{statistics.median(each.cpu_seconds) * 1e3:.2f} | {each.memory_megabytes():.0f} |"
        )
        statuses = sum((tally.statuses for tally in each.rounds), start=type(each.rounds[0].statuses)())
        if set(statuses) != {200}:
            lines.append(f"others with {each.workers}: {dict(statuses)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[1, 2], metavar="COUNT", help="of front-ends; 1 2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each round")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--weights", default=None, help="a model to run; without, the null backend answers at once")
    options = parser.parse_args()
    model = ("--backend", "null") if options.weights is None else ("--weights", options.weights)
    requests = [post("/predict", photo, "image/jpeg") for photo in photos()]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as services:
        contestants = []
        for workers in options.counts:
            flags = (*model, "--http-workers", str(workers), "--log-level", "info")
            service = services.enter_context(service_process(*flags, folder=Path(folder)))
            service.address = _wait_until_ready(service)
            contestants.append(Contestant(workers, service))
        for each in contestants:
            asyncio.run(_load(each.service.address, requests, options.clients, _WARM_UP_SECONDS))
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds} …", file=sys.stderr, flush=True)
            for each in contestants:
                each.measure(requests, options.clients, options.seconds)
        print("\n".join(report(contestants, options.rounds, options.seconds, options.clients)))


def _wait_until_ready(service: ServiceProcess) -> str:
    found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
    assert found
    return found[0]


if __name__ == "__main__":
    main()
