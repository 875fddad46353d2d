"""Who is admitted, and that what is admitted is answered in time: reservations, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import DeviceForecast, Reservation, Schedule, Shed
from app.batching.headroom import Headroom
from app.classifier import Classifier
from app.engine import EngineState
from app.engine.base import Scored
from app.errors import DeadlineExceeded, ImageCorrupt, Internal, NotReady, Overloaded, ServiceError
from app.images.cost import Cost
from app.loading import LoadedModel
from app.metrics import Metrics
from app.types import Classification, Outputs, Pixels, Want
from tests import virtual_time

IDLE = DeviceForecast(free_in_seconds=0.0, running=(), slots=1, batch_size=4, batch_seconds=1.0, single_seconds=0.4)


def busy(*running: float) -> DeviceForecast:
    """Images with these deadlines run, and their batch ends in half a second."""
    return replace(IDLE, free_in_seconds=0.5, running=running)


def free_in(seconds: float) -> DeviceForecast:
    """Its slot is free after so long."""
    return replace(IDLE, free_in_seconds=seconds)


def learn(schedule: Schedule, share: float) -> None:
    """Have it see images that were late by this share of their time, and nothing else."""
    for _ in range(400):
        schedule.headroom.observe(share)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Others:
    """What other processes hold, and what this one tells them."""

    held: int = 0
    published: list[int] = field(default_factory=list)

    def others(self) -> int:
        return self.held

    def publish(self, held: int) -> None:
        self.published.append(held)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shed() -> list[Shed]:
    return []


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def schedule(clock: Clock, shed: list[Shed], others: Others) -> Schedule:
    """One that asks for no time to spare, so that its sums can be done by hand."""
    made = Schedule(10, clock=clock, count_shed=shed.append, shared=others)
    learn(made, 0.0)
    return made


# --- a refusal that is repeated


def refuse(schedule: Schedule, clock: Clock, seconds: float = 1.0) -> Reservation:
    """Hold one image, and refuse another one with so many seconds, which would be late by 0.1 s."""
    held = schedule.reserve(IDLE, clock.now + 50)
    with pytest.raises(Overloaded):
        schedule.check(free_in(seconds - 0.3), seconds)
    return held


def is_repeated(schedule: Schedule, seconds: float = 1.0) -> bool:
    try:
        schedule.repeat_refusal(seconds)
    except Overloaded:
        return True
    return False


def test_a_refusal_is_repeated_for_a_moment(schedule: Schedule, clock: Clock, shed: list[Shed]) -> None:
    """Requests behind a refused one are refused as it was, each is counted, and a few milliseconds later none is."""
    assert not is_repeated(schedule)
    refuse(schedule, clock)
    assert is_repeated(schedule)
    clock.now += 0.0049
    assert is_repeated(schedule)
    assert shed == ["late"] * 3
    clock.now += 0.0002
    assert not is_repeated(schedule)
    assert shed == ["late"] * 3


def test_it_is_repeated_no_longer_than_the_image_was_late(schedule: Schedule, clock: Clock) -> None:
    """One that came a millisecond too late for the device is not too late a millisecond later."""
    schedule.reserve(IDLE, clock.now + 0.4)
    with pytest.raises(Overloaded):
        schedule.check(free_in(0.401), 1.0)
    clock.now += 0.0009
    assert is_repeated(schedule)
    clock.now += 0.0002
    assert not is_repeated(schedule)
    schedule.check(free_in(0.3999), 1.0)


def test_every_change_ends_the_repetition(schedule: Schedule, clock: Clock) -> None:
    """A reservation that ends or is made, and a body that is announced or will not come."""
    announced = schedule.announce()
    changes: tuple[Callable[[Reservation], object], ...] = (
        lambda held: schedule.release(held),
        lambda held: schedule.reserve(IDLE, clock.now + 100),
        lambda held: schedule.announce(),
        lambda held: schedule.withdraw(announced),
    )
    for change in changes:
        held = refuse(schedule, clock)
        assert is_repeated(schedule)
        made = change(held)
        assert not is_repeated(schedule)
        for each in (held, made):
            if isinstance(each, Reservation):
                schedule.release(each)


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_an_image_with_other_time_is_looked_at_by_itself(schedule: Schedule, clock: Clock, seconds: float) -> None:
    """One with more time may be admitted, and so may one with less, which goes ahead."""
    refuse(schedule, clock)
    assert not is_repeated(schedule, seconds)


def test_a_full_schedule_is_full_for_everybody(schedule: Schedule, clock: Clock, shed: list[Shed]) -> None:
    """Whatever time an image has, where as many are held as may be it is refused."""
    for _ in range(14):
        schedule.reserve(IDLE, clock.now + 100)
    with pytest.raises(Overloaded):
        schedule.check(IDLE, 100)
    assert is_repeated(schedule, 3)
    assert is_repeated(schedule, 300)
    assert shed == ["full"] * 3


def test_a_refused_reservation_is_not_repeated(schedule: Schedule, clock: Clock) -> None:
    """Its image may be one that takes long to decode: that says nothing of the next request."""
    schedule.reserve(IDLE, clock.now + 100)
    with pytest.raises(Overloaded):
        schedule.reserve(IDLE, clock.now + 1.0, decode_seconds=5.0)
    assert not is_repeated(schedule)


@settings(max_examples=300, deadline=None)
@given(
    held=st.lists(st.floats(0.05, 3), min_size=1, max_size=14),
    seconds=st.floats(0.05, 3),
    busy_for=st.floats(0.01, 2),
    decoded_in=st.floats(0, 2),
    passed=st.floats(0, 0.006),
    share=st.floats(0, 0.5),
)
def test_what_is_repeated_would_be_refused_again(
    held: list[float],
    seconds: float,
    busy_for: float,
    decoded_in: float,
    passed: float,
    share: float,
) -> None:
    """While a refusal is repeated a fresh look refuses too: time has passed for a busy device and for the decoder."""
    clock = Clock()
    schedule = Schedule(10, clock=clock)
    learn(schedule, share)
    for deadline in held:
        with suppress(Overloaded):
            schedule.reserve(IDLE, clock.now + deadline)
    try:
        schedule.check(free_in(busy_for), seconds, decoded_in)
    except Overloaded:
        clock.now += passed
        later = free_in(busy_for - passed)
        if is_repeated(schedule, seconds):
            with pytest.raises(Overloaded):
                schedule.check(later, seconds, max(0.0, decoded_in - passed))


# --- by hand


def test_what_is_ahead_says_when_an_image_is_answered(schedule: Schedule, clock: Clock) -> None:
    """Four share a batch, which each of them makes longer; the next one begins when the one before it has ended."""
    expected = [schedule.reserve(IDLE, clock.now + 100).expected_at - clock.now for _ in range(9)]
    assert expected == pytest.approx([0.4, 0.6, 0.8, 1, 1.4, 1.6, 1.8, 2, 2.4])


def test_what_runs_is_ahead_only_until_it_ends(schedule: Schedule, clock: Clock) -> None:
    """Reservations whose images are on the device delay nobody beyond the end of their batch."""
    for _ in range(4):
        schedule.reserve(IDLE, clock.now + 100)
    device = busy(*[clock.now + 100] * 4)
    assert schedule.reserve(device, clock.now + 100).expected_at - clock.now == pytest.approx(0.9)
    assert schedule.predicted_wait_seconds(device) == pytest.approx(0.5)
    for _ in range(3):
        schedule.reserve(device, clock.now + 100)
    assert schedule.predicted_wait_seconds(device) == pytest.approx(1.5)


def test_what_runs_may_be_less_urgent_than_what_waits(schedule: Schedule, clock: Clock) -> None:
    """Four that are more urgent than the batch that runs fill the next one; the fifth has to wait for another."""
    for _ in range(4):
        schedule.reserve(IDLE, clock.now + 100)
    device = busy(*[clock.now + 100] * 4)
    urgent = [schedule.reserve(device, clock.now + 1.8).expected_at - clock.now for _ in range(4)]
    assert urgent == pytest.approx([0.9, 1.1, 1.3, 1.5])
    with pytest.raises(Overloaded):
        schedule.reserve(device, clock.now + 1.8)
    assert schedule.reserve(device, clock.now + 2.0).expected_at - clock.now == pytest.approx(1.9)


def test_two_slots_are_twice_as_fast(schedule: Schedule, clock: Clock) -> None:
    """Batches that run side by side halve the wait."""
    two = replace(IDLE, slots=2)
    expected = [schedule.reserve(two, clock.now + 100).expected_at - clock.now for _ in range(9)]
    assert expected == pytest.approx([0.4, 0.6, 0.8, 1, 0.9, 1.1, 1.3, 1.5, 1.4])


def test_decoding_and_the_wait_for_the_device_run_side_by_side(schedule: Schedule, clock: Clock) -> None:
    """The later of the two says when its batch begins."""
    schedule.reserve(IDLE, clock.now + 100)
    device = busy(clock.now + 100)
    assert schedule.reserve(device, clock.now + 100, 0.2).expected_at - clock.now == pytest.approx(0.9)
    assert schedule.reserve(device, clock.now + 100, 3.0).expected_at - clock.now == pytest.approx(3.6)


def test_what_would_be_late_is_refused_and_told_when_to_come(
    schedule: Schedule, clock: Clock, shed: list[Shed]
) -> None:
    """An image is refused where it cannot be answered in time, by its headers and at the end of its body alike."""
    for _ in range(4):
        schedule.reserve(IDLE, clock.now + 1.25)
    device = busy(*[clock.now + 1.25] * 4)
    schedule.check(device, 0.95)
    for refused in (lambda: schedule.check(device, 0.85), lambda: schedule.reserve(device, clock.now + 0.85)):
        with pytest.raises(Overloaded) as caught:
            refused()
        assert caught.value.retry_after_seconds is not None
        assert caught.value.retry_after_seconds > 0
    assert (shed, schedule.held) == (["late", "late"], 4)
    schedule.reserve(device, clock.now + 0.95)
    assert schedule.held == 5


def test_a_decode_that_would_be_late_is_refused_before_it(schedule: Schedule, clock: Clock) -> None:
    """Where decoding alone takes until the deadline, nothing is decoded."""
    schedule.reserve(IDLE, clock.now + 5)
    with pytest.raises(Overloaded):
        schedule.reserve(IDLE, clock.now + 5, 4.5)
    schedule.reserve(IDLE, clock.now + 5, 4.0)


def test_an_urgent_image_is_refused_where_one_that_was_admitted_would_be_late_for_it(
    schedule: Schedule, clock: Clock, shed: list[Shed]
) -> None:
    """A promise that was given is kept; where everybody can be in time, the more urgent one goes first."""
    single = replace(IDLE, batch_size=1, single_seconds=1.0, running=[clock.now + 100], free_in_seconds=1.0)
    schedule.reserve(single, clock.now + 100)  # runs, to 1
    schedule.reserve(single, clock.now + 25)
    schedule.reserve(single, clock.now + 24)
    schedule.reserve(single, clock.now + 2.5)  # begins at 1, and at 2 it would be late
    with pytest.raises(Overloaded) as caught:
        schedule.reserve(single, clock.now + 2.25)
    # It would be late by half a second.
    assert caught.value.retry_after_seconds == pytest.approx(0.5, rel=0.26)
    assert shed == ["late"]
    # Behind it there is room, before those that have more time.
    schedule.reserve(single, clock.now + 3.5)
    assert schedule.held == 5


def test_one_that_is_late_already_holds_nobody_up(schedule: Schedule, clock: Clock) -> None:
    """An image that cannot be in time any more is no reason to refuse one that can."""
    schedule.reserve(IDLE, clock.now + 8)
    late = replace(IDLE, free_in_seconds=9.0)
    schedule.reserve(late, clock.now + 100)
    assert schedule.held == 2


def test_nobody_makes_a_batch_too_long_for_one_that_is_in_it(schedule: Schedule, clock: Clock) -> None:
    """Each image of a batch adds to what all of them wait for."""
    schedule.reserve(IDLE, clock.now + 0.7)
    schedule.reserve(IDLE, clock.now + 100)
    with pytest.raises(Overloaded):
        schedule.reserve(IDLE, clock.now + 100)
    assert schedule.held == 2


def test_where_nothing_is_held_an_image_is_always_admitted(schedule: Schedule, clock: Clock) -> None:
    """However slow the device is said to be: without a trial that would never be corrected."""
    slow = replace(IDLE, batch_seconds=1e6, single_seconds=1e6)
    learn(schedule, 0.5)
    schedule.check(slow, 0.001)
    held = schedule.reserve(slow, clock.now + 0.001)
    with pytest.raises(Overloaded):
        schedule.reserve(slow, clock.now + 10)
    schedule.release(held)
    schedule.reserve(slow, clock.now + 0.001)


def test_the_schedule_is_bounded(schedule: Schedule, clock: Clock, shed: list[Shed]) -> None:
    """As many as may wait beside those that fill the device, however much time they have."""
    held = [schedule.reserve(IDLE, clock.now + 1e6) for _ in range(14)]
    for refused in (lambda: schedule.check(IDLE, 1e6), lambda: schedule.reserve(IDLE, clock.now + 1e6)):
        with pytest.raises(Overloaded) as caught:
            refused()
        assert caught.value.retry_after_seconds is not None
        assert caught.value.retry_after_seconds > 0
    assert shed == ["full", "full"]
    schedule.release(held[3])
    schedule.check(IDLE, 1e6)


def test_a_place_is_given_back_once(schedule: Schedule, clock: Clock, others: Others) -> None:
    """Whoever else has the same deadline keeps theirs; each change is told to the other processes."""
    first, second, third = (schedule.reserve(IDLE, clock.now + 100) for _ in range(3))
    for _ in range(3):
        schedule.release(second)
    assert schedule.held == 2
    schedule.release(first)
    schedule.release(third)
    assert others.published == [1, 2, 3, 2, 1, 0]


def test_what_other_processes_hold_counts(schedule: Schedule, clock: Clock, others: Others) -> None:
    """For the bound and for the wait: the device is one."""
    others.held = 8
    assert schedule.predicted_wait_seconds(IDLE) == pytest.approx(2)
    assert schedule.reserve(IDLE, clock.now + 3).expected_at - clock.now == pytest.approx(2.4)
    with pytest.raises(Overloaded):
        schedule.reserve(IDLE, clock.now + 2.3)
    others.held = 13
    with pytest.raises(Overloaded):
        schedule.reserve(IDLE, clock.now + 1e6)
    assert schedule.held == 1


# --- what is announced


def test_a_body_on_its_way_counts_for_a_moment(schedule: Schedule, clock: Clock) -> None:
    """Requests whose headers were accepted are before the next one's headers, and not before a body that has ended."""
    announced = [schedule.announce() for _ in range(8)]
    with pytest.raises(Overloaded):
        schedule.check(IDLE, 2.3)
    schedule.reserve(IDLE, clock.now + 2.3)
    for each in announced[:5]:
        schedule.withdraw(each)
        schedule.withdraw(each)
    schedule.check(IDLE, 2.3)
    assert schedule.held == 1


def test_a_slow_body_holds_no_room(schedule: Schedule, clock: Clock) -> None:
    """A tenth of a second later it counts no more, whoever came meanwhile; to withdraw it then changes nothing."""
    slow = [schedule.announce() for _ in range(14)]
    clock.now += 0.06
    later = schedule.announce()
    with pytest.raises(Overloaded):
        schedule.check(IDLE, 1e6)
    clock.now += 0.06
    schedule.check(IDLE, 1.0)
    with pytest.raises(Overloaded):
        schedule.check(IDLE, 0.5)
    for each in [*slow, later]:
        schedule.withdraw(each)
    schedule.check(IDLE, 0.1)


# --- headroom


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.1])
def test_headroom_rests_where_as_many_are_later_as_may_be(deviation: float) -> None:
    """Of images whose lateness is spread evenly, about one in two hundred is later than the headroom."""
    chance = random.Random(3)
    headroom = Headroom()
    later = 0
    for number in range(60_000):
        late_by = chance.gauss(0, deviation)
        if number >= 20_000:
            later += late_by > headroom.share
        headroom.observe(late_by)
    assert 0.003 < later / 40_000 < 0.008


def test_headroom_stays_within_its_bounds() -> None:
    """It is never less than nothing, and never so much that nothing is admitted."""
    headroom = Headroom()
    for _ in range(10_000):
        headroom.observe(-1.0)
    assert headroom.share == 0
    for _ in range(10_000):
        headroom.observe(5.0)
    assert headroom.share == 0.5


def test_who_is_late_makes_the_schedule_careful(schedule: Schedule, clock: Clock) -> None:
    """A few that miss their deadline ask for time to spare from those that come; many in time take it back."""
    for _ in range(10):
        reservation = schedule.reserve(IDLE, clock.now + 1)
        schedule.observe(reservation, answered=False)
        schedule.release(reservation)
    assert schedule.headroom.share > 0.15
    held = schedule.reserve(IDLE, clock.now + 1)
    with pytest.raises(Overloaded):
        schedule.check(IDLE, 1.1)
    schedule.check(IDLE, 1.75)
    schedule.release(held)
    for _ in range(5000):
        clock.now += 0.1
        reservation = schedule.reserve(IDLE, clock.now + 100)
        schedule.observe(reservation, answered=True)
        schedule.release(reservation)
    schedule.reserve(IDLE, clock.now + 1)
    schedule.check(IDLE, 1.1)


# --- against a device that does as forecast


@dataclass
class Arrival:
    at: float
    patience: float
    leaves: bool = False


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 2),
        patience=st.sampled_from([0.01, 0.05, 0.1, 0.3, 1.0, 5.0]),
        leaves=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(arrivals=ARRIVALS, batch_size=st.integers(1, 5), slots=st.integers(1, 3))
def test_what_is_admitted_is_answered_in_time_where_the_device_does_as_forecast(
    arrivals: list[Arrival], batch_size: int, slots: int
) -> None:
    """In any order of deadlines, on a device whose batches all take what a full one takes, earliest deadlines first:
    nobody who was admitted while others were is late; and the schedule is empty in the end."""
    virtual_time.run(_play(arrivals, batch_size, slots))


async def _play(arrivals: list[Arrival], batch_size: int, slots: int) -> None:
    loop = asyncio.get_running_loop()
    each = 0.05
    others = Others()
    schedule = Schedule(1000, clock=loop.time, shared=others)
    learn(schedule, 0.0)
    waiting: list[tuple[float, int, asyncio.Future[None]]] = []
    ends: dict[int, float] = {}
    running: dict[int, list[tuple[float, int, asyncio.Future[None]]]] = {}
    late: list[float] = []
    refused: list[tuple[bool, Overloaded]] = []

    def device() -> DeviceForecast:
        left = [max(0.0, end - loop.time()) for end in ends.values()]
        return DeviceForecast(
            free_in_seconds=0.0 if len(ends) < slots else min(left),
            running=[due for batch in running.values() for due, _, answer in batch if not answer.done()],
            slots=slots,
            batch_size=batch_size,
            batch_seconds=each,
            single_seconds=each,
        )

    def start() -> None:
        while waiting and len(ends) < slots:
            waiting.sort(key=lambda entry: entry[:2])
            batch, waiting[:] = waiting[:batch_size], waiting[batch_size:]
            number = len(late) + id(batch)
            ends[number] = loop.time() + each
            running[number] = batch
            loop.call_later(each, end, number, batch)

    def end(number: int, batch: list[tuple[float, int, asyncio.Future[None]]]) -> None:
        del ends[number], running[number]
        for _, _, answer in batch:
            if not answer.done():
                answer.set_result(None)
        start()

    async def one(number: int, arrival: Arrival) -> None:
        await asyncio.sleep(arrival.at)
        was_empty = schedule.held == 0
        deadline = loop.time() + arrival.patience
        try:
            reservation = schedule.reserve(device(), deadline)
        except Overloaded as error:
            refused.append((was_empty, error))
            return
        answer: asyncio.Future[None] = loop.create_future()
        entry = (deadline, number, answer)
        waiting.append(entry)
        start()
        try:
            if arrival.leaves:
                await asyncio.wait_for(answer, 0.03)
            else:
                await answer
            if not was_empty and slots == 1:
                late.append(loop.time() - deadline)
        except TimeoutError:
            if entry in waiting:
                waiting.remove(entry)
        finally:
            schedule.release(reservation)

    await asyncio.gather(*[one(number, arrival) for number, arrival in enumerate(arrivals)])
    assert max(late, default=0) <= 1e-6
    for was_empty, error in refused:
        assert not was_empty
        assert (error.retry_after_seconds or 0) > 0
    assert schedule.held == 0
    assert not others.published or others.published[-1] == 0


# --- through the classifier, whatever becomes of an image

OUTCOMES = st.sampled_from(
    ["answered", "corrupt", "decode late", "decode full", "device failed", "device late", "device full", "bug", "left"]
)


@dataclass
class Scripted:
    """A decoder and an engine in one, that do with each image what its bytes say."""

    clock: Callable[[], float]
    decode_seconds: float = 0.01
    run_seconds: float = 0.02
    slots: int = 2
    waiting: int = 0
    lost: int = 0
    usable: int = 2
    stuck_seconds: float = 0.0
    decoded: int = 0
    preprocessing: Any = None
    labels: tuple[str, ...] = ("a", "b")
    class_count: int = 2
    identity: Any = None

    @property
    def engine(self) -> Scripted:
        return self

    def state(self) -> EngineState:
        return EngineState(True, None, DeviceForecast(0.0, (), 1, 4, self.run_seconds, self.run_seconds))

    def cost_of(self, data: bytes) -> Cost:
        if data == b"bug in cost":
            raise ZeroDivisionError
        return Cost("jpeg", 0.1)

    def predicted_seconds(self, cost: Cost | None = None, batch: object = None) -> float:
        return self.decode_seconds

    async def decode(self, data: bytes, preprocessing: Any, deadline: float, batch: object = None) -> Pixels:
        errors: dict[bytes, Exception] = {
            b"corrupt": ImageCorrupt("no"),
            b"decode late": DeadlineExceeded(),
            b"decode full": Overloaded(retry_after_seconds=1.0),
        }
        await asyncio.sleep(self.decode_seconds)
        self.decoded += 1
        if data in errors:
            raise errors[data]
        return np.frombuffer(data, np.uint8)  # type: ignore[return-value]

    async def run(self, pixels: Pixels, want: Want, deadline: float) -> Scored:
        errors: dict[bytes, Exception] = {
            b"device failed": Internal(),
            b"device late": DeadlineExceeded(),
            b"device full": Overloaded(retry_after_seconds=1.0),
            b"bug": ZeroDivisionError(),
        }
        await asyncio.sleep(self.run_seconds)
        data = pixels.tobytes()
        if data in errors:
            raise errors[data]
        return Scored(Outputs(np.array([0.75, 0.25], np.float32), "none"), 1, 0.0, self.run_seconds)

    async def close(self) -> None:
        pass


def classifier_on(scripted: Scripted, others: Others, max_queue: int = 8) -> Classifier:
    classifier = Classifier(
        cast(Any, scripted), Metrics(), max_queue, longest_seconds=10.0, clock=scripted.clock, shared=others
    )
    classifier.model = cast(LoadedModel, scripted)
    return classifier


@settings(max_examples=200, deadline=None)
@given(
    images=st.lists(
        st.tuples(st.floats(0, 0.3), OUTCOMES, st.floats(0, 0.05), st.sampled_from([0.001, 0.05, 1.0, 10.0])),
        max_size=40,
    ),
    max_queue=st.integers(1, 8),
)
def test_no_reservation_leaks_whatever_becomes_of_an_image(
    images: list[tuple[float, str, float, float]], max_queue: int
) -> None:
    """Answered, refused, failed, late or left at any moment: in the end nothing is held, and others are told so."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        others = Others()
        scripted = Scripted(loop.time)
        classifier = classifier_on(scripted, others, max_queue)
        model = classifier.model
        assert model is not None
        most = 0
        admitted = 0

        async def one(at: float, outcome: str, leaves_after: float, patience: float) -> None:
            nonlocal most, admitted
            await asyncio.sleep(at)
            call = asyncio.ensure_future(classifier.classify(model, outcome.encode(), 2, loop.time() + patience))
            if outcome == "left":
                loop.call_later(leaves_after, call.cancel)
            await asyncio.sleep(0)
            most = max(most, classifier.schedule.held)
            try:
                result = await call
                assert isinstance(result, Classification)
                assert outcome in ("answered", "left")
            except asyncio.CancelledError:
                assert outcome == "left"
            except (ServiceError, ZeroDivisionError):
                pass

        await asyncio.gather(*[one(*image) for image in images])
        assert most <= max_queue + 4
        assert classifier.schedule.held == 0
        registry = classifier.metrics.registry
        assert registry.get_sample_value("resnet_reservations") == 0
        refused = sum(
            registry.get_sample_value("resnet_shed_total", {"reason": reason}) or 0.0 for reason in ("full", "late")
        )
        left = sum(outcome == "left" for _, outcome, _, _ in images)
        # What was refused was not decoded.
        assert len(images) - refused - left <= scripted.decoded <= len(images) - refused
        if others.published:
            assert others.published[-1] == 0
            assert all(abs(one - two) == 1 for one, two in pairwise(others.published))

    virtual_time.run(scene())


def test_a_bug_in_the_estimate_holds_nothing() -> None:
    """What fails before the reservation is made leaves none."""

    async def scene() -> None:
        others = Others()
        classifier = classifier_on(Scripted(asyncio.get_running_loop().time), others)
        assert classifier.model is not None
        with pytest.raises(ZeroDivisionError):
            await classifier.classify(classifier.model, b"bug in cost", 2, 1e9)
        assert (classifier.schedule.held, others.published) == (0, [])

    virtual_time.run(scene())


def test_headers_announce_and_do_not_reserve() -> None:
    """A request that is accepted by its headers holds nothing; without a model it is told so."""

    async def scene() -> None:
        classifier = classifier_on(Scripted(asyncio.get_running_loop().time), Others())
        admitted = [classifier.admit(1.0) for _ in range(12)]
        assert classifier.schedule.held == 0
        with pytest.raises(Overloaded):
            classifier.admit(1.0)
        for each in admitted:
            classifier.schedule.withdraw(each.announcement)
        assert classifier.admit(1.0).model is classifier.model
        classifier.model = None
        with pytest.raises(NotReady):
            classifier.admit(1.0)
        assert classifier.predicted_wait_seconds() == 0

    virtual_time.run(scene())


def test_nobody_may_have_more_time_than_the_service_gives() -> None:
    """X-Request-Timeout-Ms can only shorten a deadline, at admission too."""

    async def scene() -> None:
        scripted = Scripted(asyncio.get_running_loop().time, run_seconds=8.0)
        classifier = classifier_on(scripted, Others(held=1))
        for seconds in (None, 10.0, 60.0):
            classifier.check(seconds)
        scripted.run_seconds = 12.0
        for seconds in (None, 10.0, 60.0):
            with pytest.raises(Overloaded):
                classifier.check(seconds)

    virtual_time.run(scene())
