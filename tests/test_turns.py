"""When refusals are sent, and which of their lines are written: a clock that the test moves."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.access_log import LineSample
from app.api.turns import Turns
from tests import virtual_time


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settled(clock: Clock, each_seconds: float = 100e-6, **options: float) -> Turns:
    """Turns that know what a refusal costs."""
    turns = Turns(clock=clock, **options)  # type: ignore[arg-type]
    for _ in range(1000):
        turns.took(each_seconds)
    return turns


def test_after_a_quiet_time_a_few_are_sent_at_once(clock: Clock) -> None:
    """Refusals that come together wait for nothing, as long as they are no more than a twentieth of a second holds."""
    turns = settled(clock)
    waits = [turns.wait_seconds() for _ in range(100)]
    at_once = sum(wait == 0 for wait in waits)
    assert at_once == pytest.approx(0.05 / turns.interval_seconds, abs=1.5)
    assert waits == sorted(waits)


def test_beyond_that_each_waits_one_interval_longer(clock: Clock) -> None:
    """Refusals are spaced evenly, and none waits for more than a second."""
    turns = settled(clock)
    waits = [turns.wait_seconds() for _ in range(2000)]
    spaced = [wait for wait in waits if 0 < wait < 1]
    assert spaced
    for one, next_one in pairwise(spaced):
        assert next_one - one == pytest.approx(turns.interval_seconds)
    assert max(waits) == 1.0
    # Who would have to wait longer is sent away after a second all the same.
    assert waits[-1] == 1.0


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 0.05), min_size=1, max_size=12),
    each=st.floats(5e-6, 1e-3),
    processes=st.integers(1, 16),
)
def test_they_take_no_more_than_their_share(gaps: list[float], each: float, processes: int) -> None:
    """Whenever refusals come, those that are sent within a second have room in their share, but for a burst's worth,
    where none is at the limit of a second."""
    clock = Clock()
    turns = settled(clock, each, processes=processes)
    sent = []
    for gap in gaps * (300 // len(gaps)):
        clock.now += gap
        wait = turns.wait_seconds()
        assert 0 <= wait <= 1
        if wait + turns.interval_seconds >= 1:
            return  # there are more than can be spaced
        sent.append(clock.now + wait)
    assert sent == sorted(sent)
    most = (sent[-1] - sent[0] + 0.05) / turns.interval_seconds + 2
    assert len(sent) <= most


def test_an_idle_second_brings_no_more_than_a_burst(clock: Clock) -> None:
    """Time in which nothing was refused is not saved up."""
    turns = settled(clock)
    first = sum(turns.wait_seconds() == 0 for _ in range(500))
    clock.now += 3600
    second = sum(turns.wait_seconds() == 0 for _ in range(500))
    assert abs(second - first) <= 1


def test_a_storm_that_ends_is_forgotten_within_a_second(clock: Clock) -> None:
    """However many came, a second later the next one waits for less than a second."""
    turns = settled(clock)
    for _ in range(100_000):
        turns.wait_seconds()
    clock.now += 1.06
    assert turns.wait_seconds() == 0


def test_processes_divide_the_share(clock: Clock) -> None:
    """With four processes each sends a quarter as often; all together as often as one alone."""
    one, quarter = settled(clock), settled(clock, processes=4)
    assert quarter.interval_seconds == pytest.approx(4 * one.interval_seconds)


def test_the_share_is_of_one_core(clock: Clock) -> None:
    """In a second of refusals, what they are measured to take is no more than the share that they have."""
    turns = settled(clock, 100e-6, share=0.2)
    assert 100e-6 / turns.interval_seconds <= 0.2


def test_it_learns_what_a_refusal_costs(clock: Clock) -> None:
    """Where refusals get dearer they are spaced out, where they get cheaper they come closer; one alone says little."""
    turns = settled(clock, 50e-6)
    before = turns.interval_seconds
    turns.took(50e-3)
    assert turns.interval_seconds < 25 * before
    for _ in range(1000):
        turns.took(200e-6)
    assert turns.interval_seconds == pytest.approx(4 * before, rel=1e-3)
    for _ in range(1000):
        turns.took(25e-6)
    assert turns.interval_seconds == pytest.approx(before / 2, rel=1e-3)


# --- lines


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.4, 1.0, 5.0]), max_size=200))
def test_lines_and_what_is_left_out_add_up(gaps: list[float]) -> None:
    """In no second more than ten lines are written, and each that is not is counted in one that is, or in a last."""

    class Records(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.omitted = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.omitted += record.omitted  # type: ignore[attr-defined]

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        lines = LineSample(clock=loop.time)
        written: list[int] = []
        said = 0
        for gap in gaps:
            await asyncio.sleep(gap)
            omitted = lines.take()
            if omitted is not None:
                written.append(int(loop.time()))
                said += omitted
        await asyncio.sleep(3)
        assert all(written.count(second) <= 10 for second in set(written))
        assert len(written) + said + records.omitted == len(gaps)

    records = Records()
    logger = logging.getLogger("app.api.access_log")
    level = logger.level
    logger.addHandler(records)
    logger.setLevel(logging.INFO)
    try:
        virtual_time.run(scene())
    finally:
        logger.removeHandler(records)
        logger.setLevel(level)
