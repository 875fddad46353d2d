"""Closed-loop and open-loop load.

In a closed loop each client sends its next request when the last one is answered. The server sets the pace: while it
stalls no request is sent, so that the stall is in only one latency of each client. A closed loop measures throughput.
In an open loop requests are due at times fixed in advance, and each latency counts from when its request was due: a
stall is in the latency of every request that was due meanwhile. An open loop measures latency.
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
"""Sends request number n and returns its outcome; raises only `CancelledError`."""
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
    """`clients` that send their next request as soon as they are answered: for `seconds`, or `requests` in all.

    A client waits `give_up_seconds` for an answer and then sends its next request.
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
                # Without a pause, refused connections would be tried thousands of times a second.
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
    """`requests` that are due at `rate` a second, whether or not earlier ones are answered.

    Requests without an answer `give_up_seconds` after the last one was due are counted as unanswered.
    """
    tally = Tally(target_ms)
    began = clock()
    last_at = began

    async def one(number: int, due: float) -> None:
        nonlocal last_at
        # A timer may also be early, by a part of a millisecond.
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
    """Seconds after the start at which each request is due, all within `requests / rate` seconds.

    "poisson": independent of each other, like the requests of many users; "steady": evenly spaced.
    """
    if arrivals == "steady":
        yield from (number / rate for number in range(requests))
        return
    # A Poisson process with a known number of arrivals: independent uniform times. Exponential gaps would give another
    # rate each time, by a tenth for a hundred requests.
    generator = random.Random(seed)
    yield from sorted(generator.random() * requests / rate for _ in range(requests))


async def _finish(tasks: list[asyncio.Task[None]], most_seconds: float | None) -> None:
    """Wait for all tasks, and cancel those that are not done in time."""
    if not tasks:
        return
    done, pending = await asyncio.wait(tasks, timeout=None if most_seconds is None else max(0.0, most_seconds))
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in done:
        task.result()
