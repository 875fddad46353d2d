"""Thousands of damaged images, then hundreds of slow clients, beside good traffic: `make hostile`.

Good requests come at a steady rate, first alone and then beside the damaged ones, and are timed from when they were
due: a service that stalls cannot hide it by stalling its clients. Prints what happened, and exits 1 unless every good
request was answered right, their p99 stayed within 1.5 times its quiet value, no answer was a 5xx, the process lives,
and its memory is back where it was. Run it on a machine that does nothing else.
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

import httpx
import PIL

from tests.mutations import gets_past_the_header, mutated
from tests.photos import make_jpeg, null_classes
from tests.running import ServiceProcess, service_process

_SLOW_CLIENTS = 500
_MOST_P99_RATIO = 1.5
_GOOD = [make_jpeg(seed, (500, 375)) for seed in range(16)]


@dataclass
class Outcome:
    """What a run saw."""

    quiet_seconds: list[float] = field(default_factory=list)
    good_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    past_header: int = 0
    slowest: list[tuple[float, str]] = field(default_factory=list)
    memory_before: int = 0
    memory_peak: int = 0
    memory_after: int = 0
    is_alive: bool = False

    @property
    def p99_ratio(self) -> float:
        return percentile(self.good_seconds, 99) / percentile(self.quiet_seconds, 99)


def percentile(seconds: list[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1]


def memory(service: ServiceProcess, key: str) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text(encoding="ascii")
    return int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) * 1024


async def send_good(
    client: httpx.AsyncClient, rate: float, ended: asyncio.Event, seconds: list[float], wrong: list[str]
) -> None:
    """A good request every 1/`rate` seconds until `ended`, each timed from when it was due."""
    expected = [null_classes(image)[0] for image in _GOOD]
    began = time.monotonic()

    async def one(number: int, due: float) -> None:
        try:
            answer = await client.post("/predict", content=_GOOD[number % len(_GOOD)])
            seconds.append(time.monotonic() - due)
            best = answer.json()["predictions"][0]["class_id"] if answer.status_code == 200 else None
            if best != expected[number % len(_GOOD)]:
                wrong.append(f"good request {number}: {answer.status_code} {answer.text[:200]}")
        except httpx.HTTPError as error:
            wrong.append(f"good request {number}: {error!r}")

    async with asyncio.TaskGroup() as tasks:
        number = 0
        while not ended.is_set():
            due = began + number / rate
            tasks.create_task(one(number, due))
            number += 1
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))


async def send_damaged(
    client: httpx.AsyncClient, count: int, seed: int, rate: float | None, outcome: Outcome, show: bool
) -> None:
    """All damaged images, eight at a time, at most `rate` a second."""
    images = mutated(count, seed)
    began = time.monotonic()
    sent = 0

    async def worker() -> None:
        nonlocal sent
        for made, data in images:
            sent += 1
            number = sent
            if rate:
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            if show and number % 1000 == 0:
                print(f"  {number:,} of {count:,} damaged images, {time.monotonic() - began:.0f} s", flush=True)
            outcome.past_header += gets_past_the_header(data)
            start = time.monotonic()
            try:
                answer = await client.post("/predict", content=data)
            except httpx.HTTPError as error:
                outcome.wrong.append(f"{made}: {error!r}")
                continue
            outcome.slowest = sorted([*outcome.slowest, (time.monotonic() - start, made)], reverse=True)[:5]
            code = "200" if answer.status_code == 200 else f"{answer.status_code} {answer.json()['code']}"
            outcome.answers[code] += 1
            if answer.status_code not in (200, 400, 415, 422):
                outcome.wrong.append(f"{made}: {code}")

    await asyncio.gather(*[worker() for _ in range(8)])


async def run_beside_slow_clients(address: str, seconds: float) -> tuple[Outcome, Counter[str]]:
    """Good traffic alone, then beside 500 slow clients, each for `seconds`."""
    outcome = Outcome(is_alive=True)
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:

        async def good_for(times: list[float]) -> None:
            ended = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send_good(client, 10, ended, times, outcome.wrong))
                await asyncio.sleep(seconds)
                ended.set()

        await good_for(outcome.quiet_seconds)
        slow = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.slow_clients", address, str(_SLOW_CLIENTS)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert slow.stdin is not None
        assert slow.stdout is not None
        assert await slow.stdout.readline() == b"connected\n"
        await good_for(outcome.good_seconds)
        slow.stdin.close()
        ends = Counter(json.loads(await slow.stdout.read()))
        await slow.wait()
        return outcome, ends


async def run(
    address: str, service: ServiceProcess, count: int, seed: int, quiet: float, rate: float | None, show: bool = False
) -> Outcome:
    """Good traffic alone for `quiet` seconds, then beside `count` damaged images."""
    outcome = Outcome()
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits) as client:
        async with asyncio.TaskGroup() as tasks:
            ended = asyncio.Event()
            tasks.create_task(send_good(client, 10, ended, outcome.quiet_seconds, outcome.wrong))
            await asyncio.sleep(quiet)
            ended.set()
        # What a service holds at its start is not what it holds once its threads have decoded something.
        await send_damaged(client, min(count, 200), seed + 1, rate, Outcome(), False)
        outcome.memory_before = memory(service, "VmRSS")
        async with asyncio.TaskGroup() as tasks:
            ended = asyncio.Event()
            tasks.create_task(send_good(client, 10, ended, outcome.good_seconds, outcome.wrong))
            await send_damaged(client, count, seed, rate, outcome, show)
            ended.set()
    outcome.memory_peak = memory(service, "VmHWM")
    outcome.memory_after = memory(service, "VmRSS")
    outcome.is_alive = service.process.poll() is None
    return outcome


def report(outcome: Outcome, count: int) -> str:
    quiet, good = _milliseconds(outcome.quiet_seconds), _milliseconds(outcome.good_seconds)
    lines = [
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, Pillow {PIL.__version__}",
        f"damaged images: {count:,}, of which {outcome.past_header:,} got past the header",
        "  " + ", ".join(f"{code}: {number:,}" for code, number in sorted(outcome.answers.items())),
        "  slowest: " + "; ".join(f"{seconds:.2f} s ({made})" for seconds, made in outcome.slowest[:3]),
        f"good requests: {good}; alone {quiet}; p99 ratio {outcome.p99_ratio:.2f}",
        f"memory: {outcome.memory_before / 1e6:.0f} MB before, at most {outcome.memory_peak / 1e6:.0f} MB,"
        f" {outcome.memory_after / 1e6:.0f} MB after",
        f"wrong: {len(outcome.wrong)}" + "".join(f"\n  {each}" for each in outcome.wrong[:10]),
    ]
    return "\n".join(lines)


def _milliseconds(seconds: list[float]) -> str:
    return f"{len(seconds):,}, p50 {percentile(seconds, 50) * 1e3:.0f} ms, p99 {percentile(seconds, 99) * 1e3:.0f} ms"


def faults(outcome: Outcome) -> list[str]:
    """What must not be, of all that does not depend on how fast the machine is."""
    grown = outcome.memory_after - outcome.memory_before
    return [
        *outcome.wrong,
        *(["the process died"] if not outcome.is_alive else []),
        *([f"memory grew by {grown / 1e6:.0f} MB"] if grown > 50e6 else []),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of good traffic beside slow clients")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=25.0, help="damaged images a second; 0: as fast as they go")
    parser.add_argument("--decoder", choices=["threads", "processes"], default="threads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--backend", "null", "--decoder", options.decoder, "--log-level", "info")
        with service_process(*flags, folder=Path(folder)) as service:
            found = re.search(r"http://[0-9.]+:\d+", service.wait_for("Ready:"))
            assert found
            outcome = asyncio.run(
                run(found[0], service, options.images, options.seed, 30.0, options.rate or None, show=True)
            )
            print(report(outcome, options.images))
            slow, ends = asyncio.run(run_beside_slow_clients(found[0], options.seconds))
            good, quiet = _milliseconds(slow.good_seconds), _milliseconds(slow.quiet_seconds)
            print(f"beside {_SLOW_CLIENTS} slow clients: {good}; alone {quiet}; p99 ratio {slow.p99_ratio:.2f}")
            print("  their ends: " + ", ".join(f"{end}: {number:,}" for end, number in sorted(ends.items())))
            late = [f"p99 ratio {each.p99_ratio:.2f}" for each in (outcome, slow) if each.p99_ratio > _MOST_P99_RATIO]
            wrong = [*faults(outcome), *late, *slow.wrong, *(["slow clients were reset"] if ends["reset"] else [])]
            status = service.stop()
    print("\n".join(["FAILED", *wrong[:10]]) if wrong or status else "All as it should be.")
    return 1 if wrong or status else 0


if __name__ == "__main__":
    sys.exit(main())
