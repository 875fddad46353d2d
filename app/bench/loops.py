"""Closed and open loops.

In a closed loop each client asks again when it is answered: the server sets the pace, and while it stalls nobody asks,
so that a stall is in one latency of each client and no more. It tells throughput. In an open loop requests are due at
times fixed beforehand, whatever becomes of those before them, and each latency counts from when its request was due: a
stall is in the latency of every request that was due meanwhile. It tells latency.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal

from .answers import Answer
from .steps import Step, Tally

Ask = Callable[[int], Awaitable[Answer]]
"""Sends request number n, and says what became of it; raises nothing but its own cancellation."""
Arrivals = Literal["poisson", "steady"]
Done = Callable[[int], None]
Clock = Callable[[], float]


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
