"""Any interleaving of arrivals, departures, deadlines, failures and shutdown, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import Batched, Batcher, LatencyModel, Schedule
from app.errors import (
    DeadlineExceeded,
    DeviceLost,
    Draining,
    EngineUnavailable,
    Internal,
    OutOfMemory,
    Overloaded,
    ServiceError,
)
from tests import virtual_time

ALPHA, BETA = 0.010, 0.002


@dataclass(frozen=True)
class Request:
    """One caller: when it comes, how patient it is, when it leaves, and whether its item is poison."""

    number: int
    at: float
    patience: float
    leaves_after: float | None
    is_poison: bool


@dataclass
class Device:
    """Takes alpha + beta × size; answers each item with its own number; fails as it is told."""

    memory: int = 1000
    """The largest batch that fits."""
    slowdown: float = 1.0
    hangs_at: int | None = None
    """The number of the batch that does not come back."""
    batches: list[list[int]] = field(default_factory=list)
    began: list[tuple[float, list[Request]]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def run(self, items: Sequence[Request]) -> list[int]:
        loop = asyncio.get_running_loop()
        self.batches.append([item.number for item in items])
        self.began.append((loop.time(), list(items)))
        if self.hangs_at is not None and len(self.batches) > self.hangs_at:
            await asyncio.Event().wait()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep((ALPHA + BETA * len(items)) * self.slowdown)
        finally:
            self.running -= 1
        if len(items) > self.memory:
            raise OutOfMemory()
        if any(item.is_poison for item in items):
            raise Internal()
        return [item.number * 10 for item in items]


REQUESTS = st.lists(
    st.builds(
        Request,
        number=st.just(0),
        at=st.floats(0, 0.5),
        patience=st.sampled_from([0.0, 0.005, 0.02, 0.05, 0.2, 1.0, 30.0]),
        leaves_after=st.one_of(st.none(), st.floats(0, 0.2)),
        is_poison=st.booleans().map(lambda each: each),
    ),
    min_size=1,
    max_size=40,
).map(lambda requests: [Request(n + 1, r.at, r.patience, r.leaves_after, r.is_poison and n % 3 == 0) for n, r in enumerate(requests)])  # fmt: skip  # noqa: E501


@dataclass
class Played:
    device: Device
    batcher: Batcher[Any, Any]
    requests: list[Request]
    outcomes: dict[int, object] = field(default_factory=dict)
    """Number → the Batched answer, the error, or "left"."""
    ended: dict[int, float] = field(default_factory=dict)
    most_waiting: int = 0
    schedule: Schedule | None = None


async def play(
    requests: list[Request],
    device: Device,
    *,
    size: int,
    slots: int,
    bound: int,
    delay: float = 0.0,
    closes_at: float | None = None,
    is_scheduled: bool = False,
) -> Played:
    """With `is_scheduled` each request reserves first, as the classifier does."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    batcher: Batcher[Request, int] = Batcher(
        device.run,
        max_batch_size=size,
        max_waiting=bound,
        concurrency=slots,
        max_delay_seconds=delay,
        latency=LatencyModel({1: ALPHA + BETA, 8: ALPHA + 8 * BETA}),
        hang_seconds=lambda batch_size: 5.0,
        clock=loop.time,
    )
    schedule = Schedule(bound, clock=loop.time) if is_scheduled else None
    played = Played(device, batcher, requests, schedule=schedule)

    async def answered(request: Request, deadline: float) -> Batched[int]:
        if schedule is None:
            return await batcher.submit(request, deadline=deadline)
        reservation = schedule.reserve(batcher.device(), deadline)
        try:
            answer = await batcher.submit(request, deadline=deadline)
            schedule.observe(reservation, answered=True)
        except DeadlineExceeded:
            schedule.observe(reservation, answered=False)
            raise
        finally:
            schedule.release(reservation)
        return answer

    async def one(request: Request) -> None:
        await asyncio.sleep(max(0.0, began + request.at - loop.time()))
        call = asyncio.ensure_future(answered(request, loop.time() + request.patience))
        played.most_waiting = max(played.most_waiting, batcher.waiting)
        if request.leaves_after is not None:
            loop.call_later(request.leaves_after, call.cancel)
        try:
            assert request.number not in played.outcomes
            played.outcomes[request.number] = await call
        except asyncio.CancelledError:
            played.outcomes[request.number] = "left"
        except ServiceError as error:
            played.outcomes[request.number] = error
        played.ended[request.number] = loop.time() - began

    async def close() -> None:
        await asyncio.sleep(closes_at or 0)
        await batcher.close()

    tasks = [one(request) for request in requests]
    if closes_at is not None:
        tasks.append(close())
    await asyncio.gather(*tasks)
    return played


@settings(max_examples=300, deadline=None)
@given(
    requests=REQUESTS,
    size=st.integers(1, 8),
    slots=st.integers(1, 2),
    bound=st.integers(1, 20),
    delay=st.sampled_from([0.0, 0.01, 1000.0]),
    slowdown=st.sampled_from([0.3, 1.0, 4.0]),
    memory=st.sampled_from([1, 3, 1000]),
    closes_at=st.one_of(st.none(), st.floats(0, 0.6)),
    hangs_at=st.sampled_from([None, None, 0, 2]),
    is_scheduled=st.booleans(),
)
def test_everybody_ends_once_with_what_is_their_own(
    requests: list[Request],
    size: int,
    slots: int,
    bound: int,
    delay: float,
    slowdown: float,
    memory: int,
    closes_at: float | None,
    hangs_at: int | None,
    is_scheduled: bool,
) -> None:
    """Each caller has its own answer or its own error, in time; no expired or departed request reaches the device; the
    bound, the cap and the slots hold; no reservation is left."""
    device = Device(memory, slowdown, hangs_at)
    played = virtual_time.run(
        play(
            requests,
            device,
            size=size,
            slots=slots,
            bound=bound,
            delay=delay,
            closes_at=closes_at,
            is_scheduled=is_scheduled,
        )
    )
    by_number = {request.number: request for request in requests}
    assert played.outcomes.keys() == by_number.keys()
    began_of = {number: 0.0 for number in by_number}
    for began, items in device.began:
        assert len(items) <= size
        for request in items:
            began_of[request.number] = began - 1000.0
            assert began - 1000.0 <= request.at + request.patience + 1e-9, "an expired request reached the device"
            if request.leaves_after is not None and len(items) > 0:
                assert began - 1000.0 <= request.at + request.leaves_after + 1e-9, "a leaver reached the device"
    assert device.most_running <= slots
    assert played.most_waiting <= bound
    for number, outcome in played.outcomes.items():
        request = by_number[number]
        if isinstance(outcome, Batched):
            assert outcome.value == number * 10
            assert not request.is_poison
            assert played.ended[number] <= request.at + request.patience + 1e-6
        elif outcome == "left":
            assert request.leaves_after is not None
        else:
            assert isinstance(
                outcome, Overloaded | DeadlineExceeded | Draining | EngineUnavailable | Internal | OutOfMemory
            )
            # Errors of the batch are the culprit's alone.
            assert not isinstance(outcome, Internal) or request.is_poison
            assert not isinstance(outcome, OutOfMemory) or memory < 1
            assert not isinstance(outcome, EngineUnavailable) or hangs_at is not None
            # Nobody waits past the deadline for their error.
            assert played.ended[number] <= request.at + request.patience + 1e-6
    assert played.batcher.waiting == 0
    assert played.schedule is None or played.schedule.held == 0
    assert (played.batcher.lost is not None) <= (hangs_at is not None)


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 0.2), st.sampled_from([0.5, 1.0, 30.0])), min_size=1, max_size=40
    ),
    size=st.integers(1, 8),
    slots=st.integers(1, 2),
)
def test_batches_are_of_one_key_and_the_most_urgent_is_always_next(
    requests: list[tuple[int, float, float]], size: int, slots: int
) -> None:
    """No batch mixes keys. Each begins with the earliest deadline of all that wait, whatever its key, and leaves no
    item of its key behind that is more urgent than one that it took."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        waiting: dict[int, tuple[float, int, float]] = {}

        async def run(items: Sequence[int]) -> list[int]:
            taken = [waiting.pop(item) for item in items]
            assert len({key for _, key, _ in taken}) == 1
            assert len(items) <= size
            # An item that came at this very moment may be later than the batch was formed.
            others = [(deadline, key) for deadline, key, came_at in waiting.values() if came_at < loop.time()]
            assert all(taken[0][0] <= deadline for deadline, _ in others)
            latest = max(deadline for deadline, _, _ in taken)
            same = [deadline for deadline, key in others if key == taken[0][1]]
            assert all(deadline >= latest for deadline in same)
            assert len(items) == size or not same
            await asyncio.sleep(ALPHA + BETA * len(items))
            return list(items)

        batcher: Batcher[int, int] = Batcher(
            run,
            max_batch_size=size,
            max_waiting=100,
            concurrency=slots,
            latency=LatencyModel({1: 1e-6, 8: 2e-6}),
            is_timed=lambda key: False,
            clock=loop.time,
        )

        async def one(number: int, key: int, at: float, patience: float) -> None:
            await asyncio.sleep(at)
            deadline = loop.time() + patience + 5
            waiting[number] = (deadline, key, loop.time())
            assert (await batcher.submit(number, deadline=deadline, key=key)).value == number

        await asyncio.gather(*[one(number, *request) for number, request in enumerate(requests)])

    virtual_time.run(scene())


def test_only_timed_keys_teach_how_long_batches_take() -> None:
    """Slow batches of another key leave the prediction for the plain one as it was."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()

        async def run(items: Sequence[int]) -> Sequence[int]:
            await asyncio.sleep(5.0 if items[0] else 0.01)
            return items

        batcher: Batcher[int, int] = Batcher(
            run,
            max_batch_size=4,
            max_waiting=9,
            latency=LatencyModel({1: 0.01, 4: 0.01}),
            is_timed=lambda key: key == "plain",
            clock=loop.time,
        )
        before = batcher.latency.predict(1)
        for _ in range(5):
            await batcher.submit(1, deadline=loop.time() + 30, key="slow")
        assert batcher.latency.predict(1) == before
        await batcher.submit(0, deadline=loop.time() + 30, key="plain")

    virtual_time.run(scene())


def test_nobody_starves() -> None:
    """Under a load of urgent requests that never ends, a patient one is answered before its deadline."""
    urgent = [Request(n, n * 0.004, 0.1, None, False) for n in range(1, 2000)]
    patient = Request(5000, 0.1, 2.0, None, False)
    played = virtual_time.run(play([*urgent, patient], Device(), size=4, slots=1, bound=50, is_scheduled=True))
    assert isinstance(played.outcomes[5000], Batched)
    assert played.ended[5000] < 0.1 + 2.0 + 1e-9


def test_overload_is_refused_and_what_is_accepted_is_in_time() -> None:
    """At ten times what the device can do, it is kept busy with full batches, and nearly all that it works on is
    answered before its deadline."""
    device = Device()
    requests = [Request(n, n * 0.0004, 0.2, None, False) for n in range(1, 5001)]
    played = virtual_time.run(play(requests, device, size=8, slots=1, bound=1000, is_scheduled=True))
    answered = [each for each in played.outcomes.values() if isinstance(each, Batched)]
    refused = [each for each in played.outcomes.values() if isinstance(each, Overloaded)]
    peak = 8 / (ALPHA + 8 * BETA)
    assert len(answered) >= 0.95 * peak * 2.0
    assert len(answered) + len(refused) >= 0.97 * len(requests)
    assert sum(len(batch) for batch in device.batches) <= 1.03 * len(answered)
    assert all(each.retry_after_seconds is not None and each.retry_after_seconds > 0 for each in refused)


def test_a_poison_is_found_in_a_batch_of_thirty_two_a_hundred_times() -> None:
    """Whatever its place, it fails alone, after few more runs than halving needs."""
    for place in range(100):
        device = Device()
        first = Request(1, 0.0, 30.0, None, False)
        others = [Request(n + 2, 0.001, 30.0, None, n == place % 32) for n in range(32)]
        played = virtual_time.run(play([first, *others], device, size=32, slots=1, bound=64))
        for request in others:
            outcome = played.outcomes[request.number]
            assert isinstance(outcome, Internal if request.is_poison else Batched)
        assert len(device.batches) <= 2 + 2 * 5


def test_a_hung_batch_ends_the_batcher() -> None:
    """What is on the device and what waits is answered at the limit; what comes later at once."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        device = Device(hangs_at=0)
        requests = [Request(n, n * 0.001, 30.0, None, False) for n in range(1, 10)]
        played = await play(requests, device, size=4, slots=1, bound=20)
        assert all(isinstance(outcome, EngineUnavailable) for outcome in played.outcomes.values())
        assert all(5.0 <= ended < 5.1 for ended in played.ended.values())
        assert isinstance(played.batcher.lost, DeviceLost)
        before = loop.time()
        try:
            await played.batcher.submit(requests[0], deadline=loop.time() + 30)
        except EngineUnavailable:
            pass
        else:
            raise AssertionError("it was accepted")
        assert loop.time() == before
        assert await played.batcher.close() is False or not played.batcher.running

    virtual_time.run(scene())
