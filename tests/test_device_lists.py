"""Lists of JPEGs for a device: how they form, what bounds them, and what becomes of their images where one fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from blockbuster import BlockBuster

from app.checkpoints import published_resnet50_preprocessing
from app.errors import DeadlineExceeded, DeviceLost, EngineUnavailable, OutOfMemory, Overloaded
from app.images import decode
from app.images.device_images import DeviceImage, device_image
from app.images.device_lists import DeviceLists, decode_list
from app.types import Pixels
from tests.jpeg_devices import ScriptedJpegs
from tests.photos import LIMITS, make_jpeg
from tests.running import wait_until

pytestmark = pytest.mark.anyio

RESNET50 = published_resnet50_preprocessing()
FILES = [make_jpeg(seed, (64, 48)) for seed in range(12)]
ONE_BYTES = 64 * 48 * 3


def image_of(data: bytes) -> DeviceImage:
    image = device_image(data, RESNET50, LIMITS)
    assert image is not None
    return image


IMAGES = [image_of(data) for data in FILES]
EXPECTED = [decode(data, RESNET50, LIMITS) for data in FILES]


class Lists:
    """Lists on a scripted device, and what was counted and observed."""

    def __init__(self, device: ScriptedJpegs, lists: DeviceLists, counted: list[str], observed: list[str]) -> None:
        self.device = device
        self.lists = lists
        self.counted = counted
        self.observed = observed

    def ask(self, number: int, seconds: float = 60.0) -> asyncio.Task[Pixels | None]:
        return asyncio.create_task(self.lists.run(IMAGES[number], time.monotonic() + seconds))

    async def ask_while_busy(self, *numbers: int) -> list[asyncio.Task[Pixels | None]]:
        """The first runs, held; the others wait, in this order."""
        self.device.hold()
        first = self.ask(numbers[0])
        await until(lambda: self.device.lists)
        others = [self.ask(number) for number in numbers[1:]]
        await until(lambda: self.lists.waiting == len(others))
        return [first, *others]

    def sizes(self) -> list[int]:
        return [len(files) for files in self.device.lists]


Make = Callable[..., Awaitable[Lists]]


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def outcome_of(task: asyncio.Task[Any]) -> Any:
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    return outcome


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes lists on an open device, under a watch for blocking calls; they are released and closed at the end."""
    made: list[Lists] = []

    async def build(**options: Any) -> Lists:
        device = ScriptedJpegs()
        counted: list[str] = []
        observed: list[str] = []
        lists = DeviceLists(
            **{"max_images": 4, "max_bytes": 10**9, "max_waiting": 64, "timeout_seconds": 60.0} | options,
            observe=lambda image_format, seconds: observed.append(image_format),
            count=counted.append,
        )
        await lists.open(lambda: device)
        made.append(Lists(device, lists, counted, observed))
        return made[-1]

    watch = BlockBuster(["app"])
    watch.activate()
    try:
        yield build
    finally:
        watch.deactivate()
        for each in made:
            each.device.release()
            await each.lists.close()


# --- how they form


async def test_each_caller_gets_its_own_pixels(make: Make) -> None:
    """Many images at once: each caller gets the crop of its own, from lists that are no larger than they may be."""
    it = await make()
    tasks = [it.ask(number % 12) for number in range(48)]
    for number, task in enumerate(tasks):
        assert np.array_equal(await task, EXPECTED[number % 12])
    assert max(it.sizes()) == 4
    assert sum(it.sizes()) == 48
    assert (it.lists.waiting, it.lists.lost, it.lists.predicted_wait_seconds) == (0, 0, 0)
    assert (it.counted, it.observed) == (["decoded"] * 48, ["jpeg"] * 48)


async def test_an_idle_device_begins_at_once_and_a_busy_one_is_waited_for(make: Make) -> None:
    """The first image waits for no company; those that come meanwhile are one list, in the order they came."""
    it = await make()
    tasks = await it.ask_while_busy(0, 1, 2, 3)
    assert it.device.lists == [[FILES[0]]]
    it.device.release()
    for number, task in enumerate(tasks):
        assert np.array_equal(await task, EXPECTED[number])
    assert it.device.lists == [[FILES[0]], FILES[1:4]]


async def test_a_list_has_no_more_pixels_than_its_memory(make: Make) -> None:
    """Images go into one list as far as their decoded sizes allow; one that is larger alone goes alone."""
    it = await make(max_bytes=2 * ONE_BYTES)
    tasks = await it.ask_while_busy(0, 1, 2, 3, 4, 5)
    it.device.release()
    for task in tasks:
        assert await task is not None
    assert it.sizes() == [1, 2, 2, 1]
    small = await make(max_bytes=ONE_BYTES - 1)
    assert np.array_equal(await small.ask(0), EXPECTED[0])


async def test_the_queue_is_bounded(make: Make) -> None:
    """While the device is busy as many images wait as may; one more is refused at once."""
    it = await make(max_waiting=2)
    tasks = await it.ask_while_busy(0, 1, 2)
    with pytest.raises(Overloaded) as refusal:
        await it.ask(3)
    assert refusal.value.retry_after_seconds is not None
    it.device.release()
    for number, task in enumerate(tasks):
        assert np.array_equal(await task, EXPECTED[number])


async def test_a_caller_that_leaves_takes_its_image_out_of_the_list(make: Make) -> None:
    """Who leaves before the list begins is not decoded, and its place is free at once."""
    it = await make(max_waiting=2)
    first, leaver, last = await it.ask_while_busy(0, 1, 2)
    leaver.cancel()
    await until(lambda: it.lists.waiting == 1)
    other = it.ask(3)
    it.device.release()
    for number, task in ((0, first), (2, last), (3, other)):
        assert np.array_equal(await task, EXPECTED[number])
    assert leaver.cancelled()
    assert all(FILES[1] not in files for files in it.device.lists)


async def test_a_caller_that_leaves_while_its_list_runs_costs_the_others_nothing(make: Make) -> None:
    """Its image is decoded with the rest and forgotten."""
    it = await make()
    tasks = await it.ask_while_busy(0, 1, 2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    it.device.release()
    for number in (1, 2):
        assert np.array_equal(await tasks[number], EXPECTED[number])


async def test_deadlines_hold_while_waiting_and_while_decoding(make: Make) -> None:
    """A caller whose deadline passes is told on time, and one that comes too late is not taken."""
    it = await make()
    it.device.hold()
    tasks = [it.ask(number, seconds=0.2) for number in range(2)]
    assert [type(await outcome_of(task)) for task in tasks] == [DeadlineExceeded] * 2
    assert it.lists.waiting == 0
    assert isinstance(await outcome_of(it.ask(2, seconds=-1)), DeadlineExceeded)
    it.device.release()
    assert np.array_equal(await it.ask(3), EXPECTED[3])
    assert all(file not in files for files in it.device.lists for file in FILES[1:3])


async def test_the_wait_is_predicted_from_what_images_take(make: Make) -> None:
    """A second for the list and none for who finds it idle: a newcomer waits as long as those before it take."""
    now = [0.0]
    it = await make(clock=lambda: now[0])
    it.device.before = lambda images: now.__setitem__(0, now[0] + 1.0)
    run = asyncio.create_task(it.lists.run(IMAGES[0], 1e9))
    assert await run is not None
    assert it.lists.predicted_wait_seconds == 0
    it.device.hold()
    tasks = [asyncio.create_task(it.lists.run(IMAGES[number], 1e9)) for number in range(3)]
    await until(lambda: it.lists.waiting == 2)
    assert it.lists.predicted_wait_seconds == pytest.approx(3.0)
    it.device.release()
    await asyncio.gather(*tasks)


# --- what fails


def refuse(*poison: bytes, error: Callable[[], BaseException]) -> Callable[[Sequence[DeviceImage]], None]:
    def before(images: Sequence[DeviceImage]) -> None:
        if any(image.data in poison for image in images):
            raise error()

    return before


async def test_a_file_that_fails_costs_no_other_its_place(make: Make) -> None:
    """Of a list with one that fails the others are decoded on the device, and that one is the CPU's."""
    it = await make(max_images=8)
    it.device.before = refuse(FILES[5], error=lambda: RuntimeError("Failed to decode jpeg stream: 3"))
    tasks = await it.ask_while_busy(*range(9))
    it.device.release()
    for number, task in enumerate(tasks):
        if number == 5:
            assert await task is None
        else:
            assert np.array_equal(await task, EXPECTED[number])
    assert sorted(it.counted) == ["decoded"] * 8 + ["refused"]
    assert it.observed == ["jpeg"] * 8
    assert it.sizes() == [1, 8, 4, 4, 2, 1, 1, 2]


@pytest.mark.parametrize("poison", [(0,), (3,), (0, 1, 2, 3), (1, 2)])
def test_exactly_those_that_fail_are_the_cpu_s(poison: tuple[int, ...]) -> None:
    """Whichever and however many fail, at any place in a list of any size."""
    device = ScriptedJpegs()
    device.before = refuse(*[FILES[number] for number in poison], error=lambda: RuntimeError("no"))
    for count in range(1, 8):
        decoded = decode_list(device, IMAGES[:count])
        assert [pixels is None for pixels in decoded.pixels] == [number in poison for number in range(count)]
        assert not decoded.ran_out_of_memory


def test_a_device_that_gives_too_few_or_wrong_shapes_is_not_believed() -> None:
    """Answers that do not match the list are asked for again one by one, and crops of another shape are none."""

    class Wrong(ScriptedJpegs):
        def decode(self, images: Sequence[DeviceImage]) -> list[Pixels | None]:
            found = super().decode(images)
            return found[:-1] if len(found) > 1 else [found[0][:-1] if images[0] is IMAGES[1] else found[0]]  # type: ignore[index]

    decoded = decode_list(Wrong(), IMAGES[:4])
    assert [pixels is None for pixels in decoded.pixels] == [False, True, False, False]
    for number in (0, 2, 3):
        assert np.array_equal(decoded.pixels[number], EXPECTED[number])


async def test_lists_that_the_memory_does_not_hold_are_halved_and_grow_again(make: Make) -> None:
    """Out of memory halves the list down to single images, which are then the CPU's, and keeps the next lists small."""
    it = await make(max_images=8, max_bytes=8 * ONE_BYTES)

    def before(images: Sequence[DeviceImage]) -> None:
        if len(images) > 2:
            raise OutOfMemory()

    it.device.before = before
    tasks = await it.ask_while_busy(*[number % 12 for number in range(21)])
    it.device.release()
    for number, task in enumerate(tasks):
        assert np.array_equal(await task, EXPECTED[number % 12])
    # Eight fail, and so do their halves; the next list is of four, and fails; those after it are of two.
    assert it.sizes() == [1, *[8, 4, 2, 2, 4, 2, 2], *[4, 2, 2], 2, 2, 2, 2]
    it.device.before = lambda images: None
    for _ in range(40):
        assert await it.ask(0) is not None
    it.device.lists.clear()
    tasks = await it.ask_while_busy(*range(9))
    it.device.release()
    await asyncio.gather(*tasks)
    assert it.sizes() == [1, 8]


async def test_an_image_that_the_memory_does_not_hold_alone_is_the_cpu_s(make: Make) -> None:
    """Nothing is smaller than one image."""
    it = await make()
    it.device.before = refuse(FILES[0], error=OutOfMemory)
    assert await it.ask(0) is None
    assert np.array_equal(await it.ask(1), EXPECTED[1])


async def test_a_lost_device_is_not_asked_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """All of its list, all that wait and all that come are the CPU's; the log says so once."""
    it = await make()
    tasks = await it.ask_while_busy(0, 1, 2)
    it.device.before = refuse(*FILES, error=lambda: DeviceLost("card failed: illegal address"))
    it.device.release()
    assert [await task for task in tasks] == [None] * 3
    assert await it.ask(3) is None
    assert it.sizes() == [1]
    assert not it.lists.is_on
    [record] = [each for each in caplog.records if each.levelno == logging.CRITICAL]
    assert "card failed: illegal address. Every image is decoded on the CPU" in record.message


async def test_a_device_that_hangs_is_given_up_at_the_time_limit(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """At the limit all of the list and all that wait are the CPU's, what hangs is counted until it ends, and the
    device stays off."""
    it = await make(timeout_seconds=0.3)
    began = time.monotonic()
    tasks = await it.ask_while_busy(0, 1, 2)
    assert [await task for task in tasks] == [None] * 3
    assert 0.25 < time.monotonic() - began < 5
    assert (it.lists.lost, it.lists.waiting, it.lists.is_on) == (1, 0, False)
    assert "longer than 0.3 seconds" in caplog.text
    assert await it.ask(3) is None
    it.device.release()
    await until(lambda: it.lists.lost == 0)
    assert await it.ask(4) is None
    assert it.counted == []


async def test_closing_refuses_what_waits_and_closes_an_idle_device(make: Make) -> None:
    """Closing answers what waits and does not wait for what runs, which is answered when it ends; a device that is idle
    is closed, on its thread."""
    it = await make()
    tasks = await it.ask_while_busy(0, 1)
    await it.lists.close()
    assert isinstance(await outcome_of(tasks[1]), EngineUnavailable)
    assert not it.device.is_closed
    it.device.release()
    assert np.array_equal(await tasks[0], EXPECTED[0])
    idle = await make()
    assert await idle.ask(0) is not None
    await idle.lists.close()
    assert idle.device.is_closed
