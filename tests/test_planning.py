"""How large a batch is worth it, with a clock that a device of our making drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.planning import Room, has_room_for_twice, plan_batches


@dataclass
class Device:
    """Takes `seconds(batch_size)` of its own clock for a batch, and a hundredfold for the first of each size."""

    seconds: Callable[[int], float]
    now: float = 0.0
    ran: list[int] = field(default_factory=list)

    def run(self, batch_size: int) -> None:
        self.now += self.seconds(batch_size) * (1 if batch_size in self.ran else 100)
        self.ran.append(batch_size)

    def clock(self) -> float:
        return self.now

    @property
    def sizes(self) -> list[int]:
        """In the order that they were first run."""
        return list(dict.fromkeys(self.ran))


def linear(fixed: float, per_image: float) -> Callable[[int], float]:
    return lambda size: fixed + per_image * size


def test_a_device_that_gains_to_the_end_is_given_the_largest_batch() -> None:
    """Where a batch takes no longer than an image, the largest size is the plan."""
    device = Device(lambda size: 0.01)
    plan = plan_batches(device.run, 64, None, clock=device.clock)
    assert plan.max_batch_size == 64
    assert device.sizes == [1, 2, 4, 8, 16, 32, 64]
    assert plan.seconds_per_image == pytest.approx(0.01 / 64)


def test_a_device_that_gains_nothing_works_on_single_images() -> None:
    """Where a batch costs what its images cost, one at a time is the plan, and the climb ends after two more sizes."""
    device = Device(linear(0.0, 0.05))
    plan = plan_batches(device.run, 32, None, clock=device.clock)
    assert plan.max_batch_size == 1
    assert device.sizes == [1, 2, 4]
    assert plan.seconds_per_image == pytest.approx(0.05)


def test_the_smallest_size_within_five_percent_is_planned() -> None:
    """Of sizes that are about as fast, the smallest is taken, for its images wait the shortest."""
    throughput = {1: 100, 2: 180, 4: 290, 8: 300, 16: 303}
    device = Device(lambda size: size / throughput[size])
    plan = plan_batches(device.run, 16, None, clock=device.clock)
    assert plan.max_batch_size == 4
    assert device.sizes == [1, 2, 4, 8, 16]


def test_one_size_that_gains_nothing_does_not_end_the_climb() -> None:
    """A single size that a device is bad at is climbed over."""
    throughput = {1: 100, 2: 90, 4: 200, 8: 400}
    device = Device(lambda size: size / throughput[size])
    plan = plan_batches(device.run, 8, None, clock=device.clock)
    assert plan.max_batch_size == 8
    assert device.sizes == [1, 2, 4, 8]


def test_a_size_that_is_worse_ends_the_climb() -> None:
    """Where larger batches lose, none is tried beyond the second that does."""
    throughput = {1: 100, 2: 190, 4: 150, 8: 80}
    device = Device(lambda size: size / throughput[size])
    plan = plan_batches(device.run, 128, None, clock=device.clock)
    assert plan.max_batch_size == 2
    assert device.sizes == [1, 2, 4, 8]


@given(st.floats(0.0, 1.0), st.floats(1e-4, 0.1), st.sampled_from([1, 2, 3, 32, 100, 128]))
def test_the_plan_is_within_five_percent_of_the_best_measured(fixed: float, per_image: float, largest: int) -> None:
    """For any device whose batches cost a constant and a share for each image, the plan is near the best measured."""
    device = Device(linear(fixed, per_image))
    plan = plan_batches(device.run, largest, None, clock=device.clock)
    throughput = {size: size / seconds for size, seconds in plan.seconds.items()}
    assert 1 <= plan.max_batch_size <= largest
    assert throughput[plan.max_batch_size] * 1.0501 >= max(throughput.values())
    smaller = [size for size in throughput if size < plan.max_batch_size]
    assert all(throughput[size] * 1.0499 <= max(throughput.values()) for size in smaller)


def test_the_first_run_of_a_size_is_not_timed() -> None:
    """What a first run costs, which no request pays again, is not in the plan, and of the rest the median counts."""
    device = Device(linear(0.0, 0.05))
    plan = plan_batches(device.run, 1, None, clock=device.clock)
    assert device.ran == [1, 1, 1, 1]
    assert plan.seconds == {1: pytest.approx(0.05)}


def test_one_slow_run_does_not_sway_the_plan() -> None:
    """A run that something else disturbed does not count, for the median is taken."""
    device = Device(lambda size: 5.0 if len(device.ran) == 2 else 0.01)
    plan = plan_batches(device.run, 1, None, clock=device.clock)
    assert plan.seconds == {1: pytest.approx(0.01)}


@pytest.mark.parametrize(
    ("fixed", "largest", "planned", "sizes"), [(8, 64, 8, [1, 8]), (1, 64, 1, [1]), (99, 32, 32, [1, 32])]
)
def test_a_size_that_the_settings_fix_is_the_plan(fixed: int, largest: int, planned: int, sizes: list[int]) -> None:
    """A fixed size is planned however slow it is, cut to what the backend takes, and only 1 and it are timed."""
    device = Device(lambda size: size**2 * 0.01)
    plan = plan_batches(device.run, largest, fixed, clock=device.clock)
    assert plan.max_batch_size == planned
    assert device.sizes == sizes
    assert sorted(plan.seconds) == sizes
    assert plan.seconds_per_image == pytest.approx(planned * 0.01)


@pytest.mark.parametrize("fixed", [None, 8])
def test_a_cancelled_warm_up_stops_between_sizes(fixed: int | None) -> None:
    """Told to stop, the warm-up begins no further size and still gives a plan that can be read."""
    device = Device(lambda size: 0.01)
    plan = plan_batches(device.run, 64, fixed, is_cancelled=lambda: 1 in device.ran, clock=device.clock)
    assert device.sizes == [1]
    assert plan.seconds_per_image == pytest.approx(0.01)
    assert plan.max_batch_size == (fixed or 1)


def test_a_warm_up_that_is_cancelled_at_once_runs_nothing() -> None:
    """Told to stop before it began, the warm-up does not touch the device."""
    device = Device(lambda size: 0.01)
    plan = plan_batches(device.run, 64, None, is_cancelled=lambda: True, clock=device.clock)
    assert device.ran == []
    assert plan.max_batch_size == 1


def test_a_clock_too_coarse_to_tell_still_gives_a_plan() -> None:
    """Batches that take no measurable time do not divide by zero."""
    device = Device(lambda size: 0.0)
    plan = plan_batches(device.run, 4, None, clock=device.clock)
    assert plan.max_batch_size in (1, 2, 4)
    assert plan.seconds_per_image == 0.0


def test_a_failing_device_fails_the_warm_up() -> None:
    """An error of the device while it warms up is not swallowed."""

    def broken(batch_size: int) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        plan_batches(broken, 4, None)


def test_a_slow_device_is_not_climbed_for_long() -> None:
    """A size whose runs would hold the start up for more than three seconds is not tried."""
    device = Device(linear(0.02, 0.055))
    plan = plan_batches(device.run, 64, None, clock=device.clock)
    assert device.sizes == [1, 2, 4, 8]
    assert plan.max_batch_size in device.sizes


# --- what an earlier start measured


def test_what_an_earlier_start_measured_is_not_measured_again() -> None:
    """Where a single image still takes about what it did, the plan is the earlier one, and only its size is warmed."""
    seconds = linear(0.08, 0.02)
    measured = Device(seconds)
    first = plan_batches(measured.run, 16, None, clock=measured.clock)
    again = Device(lambda size: 1.5 * seconds(size))
    second = plan_batches(again.run, 16, None, clock=again.clock, known=first.seconds)
    assert second == first
    assert first.max_batch_size > 1
    assert again.ran == [1, 1, first.max_batch_size]


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_machine_that_has_become_another_is_measured_anew(factor: float) -> None:
    """A single image that takes less than half of what it did, or more than twice, makes the rest doubtful too."""
    device = Device(linear(0.0, 0.05 * factor))
    plan = plan_batches(device.run, 32, None, clock=device.clock, known={1: 0.05, 2: 0.05, 4: 0.05})
    assert plan.max_batch_size == 1
    assert plan.seconds[1] == pytest.approx(0.05 * factor)


@pytest.mark.parametrize("known", [{}, {1: 0.05, 2: 0.1}, {2: 0.1}])
def test_kept_times_that_lack_the_size_are_no_help(known: dict[int, float]) -> None:
    """A size that was set, or the single image, is measured where nothing is known of it."""
    device = Device(linear(0.0, 0.05))
    plan = plan_batches(device.run, 32, 8, clock=device.clock, known=known)
    assert plan.max_batch_size == 8
    assert plan.seconds == pytest.approx({1: 0.05, 8: 0.4})


def test_kept_times_obey_a_limit_on_the_wait() -> None:
    """A limit on an answer's time chooses among kept times as it does among new ones."""
    known = {1: 0.1, 2: 0.11, 4: 0.12, 8: 0.2}
    device = Device(lambda size: known[size])
    plan = plan_batches(device.run, 8, None, clock=device.clock, known=known, slo_seconds=0.3)
    assert plan.max_batch_size == 4
    assert device.sizes == [1, 4]


def test_the_planned_size_is_run_last_where_larger_ones_were_tried() -> None:
    """So that the device can give back what only the larger ones needed."""
    device = Device(linear(0.0, 0.05))
    plan_batches(device.run, 32, None, clock=device.clock)
    assert device.ran[-1] == 1


@dataclass
class Memory:
    """Of a process in which a network's results for an image take 10 MB, beside 200 that it held before."""

    device: Device
    limit: int

    def resident(self) -> int:
        return 200 + 10 * max(self.device.ran, default=0)

    def room(self, slots: int) -> Room:
        return Room(slots, self.resident, self.limit)


@pytest.mark.parametrize(
    ("limit", "slots", "sizes"),
    [
        (10_000, 1, [1, 2, 4, 8, 16, 32, 64]),
        (520, 1, [1, 2, 4, 8, 16, 32]),
        (519, 1, [1, 2, 4, 8, 16]),
        (1160, 2, [1, 2, 4, 8, 16, 32]),
        (1159, 2, [1, 2, 4, 8, 16]),
        (0, 1, [1]),
    ],
)
def test_the_climb_ends_where_memory_would(limit: int, slots: int, sizes: list[int]) -> None:
    """A size is not tried whose results, of every call at once, would not fit; the largest that did is the plan."""
    device = Device(lambda size: 0.01)
    room = Memory(device, limit).room(slots)
    plan = plan_batches(device.run, 64, None, clock=device.clock, has_room=room.for_twice)
    assert device.sizes == sizes
    assert plan.max_batch_size == sizes[-1]
    assert Memory(device, limit).resident() + (slots if slots > 1 else 0) * 10 * sizes[-1] <= max(limit, 210)


def test_a_size_that_somebody_asked_for_is_not_refused_for_memory() -> None:
    """A setting is an order; what it takes is for whoever gave it to know."""
    device = Device(lambda size: 0.01)
    plan = plan_batches(device.run, 64, 32, clock=device.clock, has_room=lambda: False)
    assert plan.max_batch_size == 32


def test_where_memory_is_not_told_it_is_no_bound() -> None:
    """A system without /proc climbs as before."""
    room = Room(2, lambda: 0, 1000)
    assert room.for_twice()


def test_only_a_cpus_batches_are_held_to_this_processs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's driver takes gigabytes of this process at its start, which say nothing of batches."""
    monkeypatch.setattr("app.engine.planning.available_memory_bytes", lambda: 0)
    assert not has_room_for_twice("cpu (2 threads, float32)", 2)()
    assert has_room_for_twice("cuda:0 (bfloat16)", 2)()
