"""Closed and open loops, and what each of them found.

In a closed loop each client asks again when it is answered: the server sets the pace, and while it stalls nobody asks,
so that a stall is in one latency of each client and no more. It tells throughput. In an open loop requests are due at
times fixed beforehand, whatever becomes of those before them, and each latency counts from when its request was due: a
stall is in the latency of every request that was due meanwhile. It tells latency.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .answers import STAGES, Answer

Ask = Callable[[int], Awaitable[Answer]]
"""Sends request number n, and says what became of it; raises nothing but its own cancellation."""
Arrivals = Literal["poisson", "steady"]
Done = Callable[[int], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, of good answers: from when each request was due (open loop) or sent (closed loop)."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one loop found."""

    loop: Literal["open", "closed"]
    offered_rate: float | None
    """Requests a second that were due; None in a closed loop."""
    clients: int | None
    requests: int
    """Sent, or due."""
    seconds: float
    """From the first request to the last answer, or to when no more was sent if that is later."""
    good: int
    """Right answers …"""
    in_time: int
    """… and those within the target."""
    target_ms: float
    wrong: int
    unanswered: int
    """Given up at the end of the loop."""
    statuses: dict[str, int]
    codes: dict[str, int]
    connection_errors: dict[str, int]
    latency_ms: Latency | None
    stages_ms: dict[str, float]
    """Means over good answers that tell their stages; "other" is what the stages do not: sockets, HTTP, waiting."""
    batch_sizes: dict[str, int]
    send_lag_p99_ms: float
    """How late the generator itself was, in an open loop; it is part of the latencies."""
    generator_cpu_seconds: float = 0.0

    @property
    def throughput(self) -> float:
        """Right answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Right answers within the target, a second."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def outcomes(self) -> str:
        """What became of the requests, for a person."""
        counts = {**self.statuses, **self.codes, **self.connection_errors}
        told = ", ".join(f"{count} × {name}" for name, count in counts.items()) or "no answer at all"
        return f"{told}, {self.wrong} wrong."

    @property
    def keeps_target(self) -> bool:
        """99 of 100 requests were answered rightly within the target: a refusal is no answer."""
        return self.requests > 0 and self.in_time >= 0.99 * self.requests


@dataclass
class Tally:
    """Collects the answers of one loop."""

    target_ms: float
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    connection_errors: Counter[str] = field(default_factory=Counter)
    batch_sizes: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    answered: int = 0
    _stages: list[float] = field(default_factory=lambda: [0.0] * len(STAGES))
    _other_ms: float = 0.0
    _staged: int = 0

    def add(self, answer: Answer, latency_seconds: float) -> None:
        self.answered += 1
        if answer.status is None:
            self.connection_errors[answer.error or "unknown"] += 1
            return
        self.statuses[str(answer.status)] += 1
        if answer.code is not None:
            self.codes[answer.code] += 1
        self.wrong += answer.is_wrong
        if not answer.is_good:
            return
        latency_ms = latency_seconds * 1e3
        self.latencies_ms.append(latency_ms)
        if answer.batch_size is not None:
            self.batch_sizes[str(answer.batch_size)] += 1
        if answer.stages_ms:
            self._staged += 1
            for index, ms in enumerate(answer.stages_ms):
                self._stages[index] += ms
            self._other_ms += latency_ms - sum(answer.stages_ms)

    def step(
        self,
        loop: Literal["open", "closed"],
        *,
        requests: int,
        seconds: float,
        offered_rate: float | None = None,
        clients: int | None = None,
    ) -> Step:
        stages = {}
        if self._staged:
            stages = {name: ms / self._staged for name, ms in zip(STAGES, self._stages, strict=True)}
            stages["other"] = self._other_ms / self._staged
        return Step(
            loop=loop,
            offered_rate=offered_rate,
            clients=clients,
            requests=requests,
            seconds=seconds,
            good=len(self.latencies_ms),
            in_time=sum(each <= self.target_ms for each in self.latencies_ms),
            target_ms=self.target_ms,
            wrong=self.wrong,
            unanswered=requests - self.answered,
            statuses=dict(self.statuses),
            codes=dict(self.codes),
            connection_errors=dict(self.connection_errors),
            latency_ms=latency_of(self.latencies_ms),
            stages_ms=stages,
            batch_sizes=dict(self.batch_sizes),
            send_lag_p99_ms=percentile(sorted(self.lags_ms), 0.99) if self.lags_ms else 0.0,
        )


async def closed_loop(
    ask: Ask,
    *,
    clients: int,
    target_ms: float,
    seconds: float | None = None,
    requests: int | None = None,
    give_up_seconds: float = 60.0,
    on_done: Done = lambda done: None,
    clock: Clock = time.monotonic,
) -> Step:
    """`clients` that ask again as soon as they are answered: for so many `seconds`, or `requests` in all.

    A request that is not answered within `give_up_seconds` is given up, and its client goes on.
    """
    tally = Tally(target_ms)
    numbers = itertools.count() if requests is None else iter(range(requests))
    began = clock()
    ends_at = began + seconds if seconds is not None else float("inf")
    sent = 0
    last_at = began

    async def client() -> None:
        nonlocal sent, last_at
        for number in numbers:
            sent += 1
            asked = clock()
            try:
                async with asyncio.timeout(give_up_seconds):
                    answer = await ask(number)
            except TimeoutError:
                answer = Answer(None, error="no answer")
            last_at = clock()
            tally.add(answer, last_at - asked)
            on_done(tally.answered)
            if last_at >= ends_at:
                return
            if answer.status is None:
                # A server that refuses connections would be asked thousands of times a second.
                await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await _finish(tasks, None if seconds is None else seconds + give_up_seconds)
    return tally.step("closed", requests=sent, seconds=last_at - began, clients=clients)


async def open_loop(
    ask: Ask,
    *,
    rate: float,
    requests: int,
    target_ms: float,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
    give_up_seconds: float = 10.0,
    on_done: Done = lambda done: None,
    clock: Clock = time.monotonic,
) -> Step:
    """`requests` that are due at `rate` a second, whatever becomes of those before them.

    What is not answered `give_up_seconds` after the last was due is given up and counted.
    """
    tally = Tally(target_ms)
    began = clock()
    last_at = began

    async def one(number: int, due: float) -> None:
        nonlocal last_at
        # A timer may be early too, by a part of a millisecond.
        due = min(due, clock())
        answer = await ask(number)
        last_at = clock()
        tally.add(answer, last_at - due)
        on_done(tally.answered)

    tasks = []
    due = began
    for number, offset in enumerate(due_times(rate, requests, arrivals, seed)):
        due = began + offset
        delay = due - clock()
        if delay > 0:
            await asyncio.sleep(delay)
        tally.lags_ms.append(max(0.0, clock() - due) * 1e3)
        tasks.append(asyncio.create_task(one(number, due)))
    await _finish(tasks, due - clock() + give_up_seconds)
    seconds = max(last_at - began, requests / rate)
    return tally.step("open", requests=requests, seconds=seconds, offered_rate=rate)


def due_times(rate: float, requests: int, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Seconds after the start at which each request is due.

    "poisson": independent of each other, as the requests of many people are; "steady": evenly spaced. Either way they
    come within `requests / rate` seconds.
    """
    if arrivals == "steady":
        yield from (number / rate for number in range(requests))
        return
    # A Poisson process of which the number of arrivals is known: independent moments. A sum of so many free gaps would
    # be at another rate each time, by a tenth where it is a hundred of them.
    generator = random.Random(seed)
    yield from sorted(generator.random() * requests / rate for _ in range(requests))


def latency_of(latencies_ms: Sequence[float]) -> Latency | None:
    if not latencies_ms:
        return None
    ordered = sorted(latencies_ms)
    p50, p90, p99, p999 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999))
    return Latency(p50, p90, p99, p999, ordered[-1], sum(ordered) / len(ordered))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of `ordered` (not empty, ascending) do not exceed: nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def _finish(tasks: list[asyncio.Task[None]], most_seconds: float | None) -> None:
    """Wait for all, and cancel what is not done in time."""
    if not tasks:
        return
    done, pending = await asyncio.wait(tasks, timeout=None if most_seconds is None else max(0.0, most_seconds))
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in done:
        task.result()
