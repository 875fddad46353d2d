"""The two decoders: what holds for both, and what each does with an image that hangs or crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from blockbuster import BlockBuster
from PIL import Image

from app.checkpoints import published_resnet50_preprocessing
from app.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    ImageCorrupt,
    ImageTooComplex,
    ImageTooLarge,
    Internal,
    Overloaded,
    ServiceError,
    UnsupportedImageFormat,
)
from app.images import Decoder, decode, decoding_messages, threads
from app.images.process_decoder import ProcessDecoder
from app.images.threads import ThreadDecoder
from app.settings import Settings
from app.types import Interpolation, Pixels, Preprocessing
from tests import images_made as made
from tests.pace import within
from tests.photos import LIMITS, encode, make_jpeg, null_classes
from tests.running import post_image, running_server, service_process, wait_until

pytestmark = pytest.mark.anyio

RESNET50 = published_resnet50_preprocessing()
ONE_IMAGE_BYTES = 700_000_000
IMAGES = [make_jpeg(seed, (64, 48)) for seed in range(12)]
EXPECTED = [decode(image, RESNET50, LIMITS) for image in IMAGES]
REPOSITORY = Path(__file__).parent.parent


class Held:
    """A decoder, and a hold on its slots that looks to it like images which never end."""

    decoder: Decoder

    def hold(self, count: int) -> None:
        """The next `count` images on slots that are free now hang."""
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError


class HeldThreads(Held):
    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.decoder = ThreadDecoder(LIMITS, **options)
        self._opened = threading.Event()
        self._to_hold = 0
        self.begun: list[bytes] = []

        def held(data: bytes, *how: Any) -> Pixels:
            self.begun.append(data)
            if self._to_hold > 0:
                self._to_hold -= 1
                assert self._opened.wait(60)
            return decode(data, *how)

        monkeypatch.setattr(threads, "decode", held)

    def hold(self, count: int) -> None:
        self._opened.clear()
        self._to_hold = count

    def release(self) -> None:
        self._to_hold = 0
        self._opened.set()


class HeldProcesses(Held):
    decoder: ProcessDecoder

    def __init__(self, **options: Any) -> None:
        options.pop("spare", None)
        self.decoder = ProcessDecoder(LIMITS, memory_bytes=ONE_IMAGE_BYTES, **options)
        self._stopped: list[int] = []

    def hold(self, count: int) -> None:
        self._stopped = self.decoder.process_ids[:count]
        assert len(self._stopped) == count
        self._signal(signal.SIGSTOP)

    def release(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process_id in set(self._stopped) & set(self.decoder.process_ids):
            os.kill(process_id, number)


Make = Callable[..., Awaitable[Held]]


@pytest.fixture(params=["threads", "processes"])
async def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes started decoders of one kind, under a watch for blocking calls; they are released and closed at the end."""
    made_here: list[Held] = []

    async def build(slots: int = 2, max_waiting: int = 64, timeout_seconds: float = 60.0, **options: Any) -> Held:
        options |= {"slots": slots, "max_waiting": max_waiting, "timeout_seconds": timeout_seconds}
        held = HeldThreads(monkeypatch, **options) if request.param == "threads" else HeldProcesses(**options)
        made_here.append(held)
        await held.decoder.start()
        return held

    watch = BlockBuster(["app"])
    watch.activate()
    try:
        yield build
    finally:
        watch.deactivate()
        for held in made_here:
            held.release()
            await held.decoder.close()


@pytest.fixture
async def processes() -> AsyncIterator[ProcessDecoder]:
    decoder = ProcessDecoder(LIMITS, slots=1, memory_bytes=ONE_IMAGE_BYTES, max_waiting=64, timeout_seconds=60)
    await decoder.start()
    yield decoder
    await decoder.close()


def ask(decoder: Decoder, data: bytes, seconds: float = 60.0) -> asyncio.Task[Pixels]:
    return asyncio.create_task(decoder.decode(data, RESNET50, time.monotonic() + seconds))  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def outcome_of(task: asyncio.Task[Pixels]) -> Pixels | BaseException:
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    return outcome


# --- both


async def test_each_caller_gets_its_own_pixels(make: Make) -> None:
    """Many images at once on two slots: each caller gets what decoding its image alone gives."""
    decoder = (await make()).decoder
    tasks = [ask(decoder, image) for image in IMAGES * 4]
    for task, expected in zip(tasks, EXPECTED * 4, strict=True):
        assert np.array_equal(await task, expected)
    assert (decoder.waiting, decoder.lost, decoder.usable, decoder.slots) == (0, 0, 2, 2)


@pytest.mark.parametrize(
    "preprocessing",
    [
        RESNET50,
        Preprocessing(None, (96, 160), Interpolation.BICUBIC, (0.5,) * 3, (0.5,) * 3, is_bgr=True),
        Preprocessing(100, (75, 75), Interpolation.LANCZOS, (0.0,) * 3, (1.0,) * 3, floor_crop=True),
    ],
)
async def test_the_models_own_preprocessing_is_applied(make: Make, preprocessing: Preprocessing) -> None:
    """Every way to prepare an image crosses the border whole."""
    decoder = (await make()).decoder
    pixels = await decoder.decode(IMAGES[0], preprocessing, time.monotonic() + 60)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, decode(IMAGES[0], preprocessing, LIMITS))


async def test_the_mode_is_applied(make: Make) -> None:
    """A decoder in fast mode gives the pixels of fast mode, which are not those of exact mode."""
    data = encode(made.photo("coffee").resize((1800, 1203)))
    pixels = {mode: await ask((await make(mode=mode)).decoder, data) for mode in ("exact", "fast")}
    assert np.array_equal(pixels["exact"], decode(data, RESNET50, LIMITS))
    assert np.array_equal(pixels["fast"], decode(data, RESNET50, LIMITS, "fast"))
    assert not np.array_equal(pixels["fast"], pixels["exact"])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UnsupportedImageFormat),
        (b"%PDF-1.7 ", UnsupportedImageFormat),
        (IMAGES[0][:300], ImageCorrupt),
        (made.forged_jpeg(60_000, 60_000), ImageTooLarge),
        (made.scan_bomb((64, 64), 100), ImageTooComplex),
    ],
)
async def test_an_images_error_is_the_same_everywhere(make: Make, data: bytes, error: type[ServiceError]) -> None:
    """What `decode` raises reaches the caller as the same type with the same words."""
    with pytest.raises(error) as directly:
        decode(data, RESNET50, LIMITS)
    decoder = (await make()).decoder
    with pytest.raises(error) as refusal:
        await ask(decoder, data)
    assert refusal.value.detail == directly.value.detail
    assert np.array_equal(await ask(decoder, IMAGES[1]), EXPECTED[1])


async def test_a_large_file_goes_in_whole(make: Make) -> None:
    """A file of many megabytes, far over what a socket holds, arrives as it is."""
    decoder = (await make()).decoder
    data = encode(made.noise((1500, 1500)), "PNG", compress_level=0)
    assert np.array_equal(await ask(decoder, data), decode(data, RESNET50, LIMITS))


async def test_the_queue_is_bounded_and_in_order(make: Make) -> None:
    """While the slots are held, as many images wait as may, one more is refused at once, and all are served later."""
    held = await make(slots=1, max_waiting=2)
    held.hold(1)
    tasks = [ask(held.decoder, image) for image in IMAGES[:3]]
    await until(lambda: held.decoder.waiting == 2)
    order: list[int] = []
    for number, task in enumerate(tasks):
        task.add_done_callback(lambda done, number=number: order.append(number))
    with pytest.raises(Overloaded) as refusal:
        await ask(held.decoder, IMAGES[3])
    assert refusal.value.retry_after_seconds is not None
    held.release()
    for task, expected in zip(tasks, EXPECTED[:3], strict=True):
        assert np.array_equal(await task, expected)
    await until(lambda: len(order) == 3)
    assert order == [0, 1, 2]


async def test_a_caller_that_leaves_before_its_turn_takes_its_image_along(make: Make) -> None:
    """A cancelled caller frees its place in the queue at once, and those behind it move up."""
    held = await make(slots=1, max_waiting=2)
    held.hold(1)
    first, leaver, last = (ask(held.decoder, image) for image in IMAGES[:3])
    await until(lambda: held.decoder.waiting == 2)
    leaver.cancel()
    await until(lambda: held.decoder.waiting == 1)
    other = ask(held.decoder, IMAGES[3])
    held.release()
    for task, expected in ((first, 0), (last, 2), (other, 3)):
        assert np.array_equal(await task, EXPECTED[expected])
    assert leaver.cancelled()
    if isinstance(held, HeldThreads):
        assert IMAGES[1] not in held.begun


async def test_a_deadline_holds_in_the_queue_and_in_a_slot(make: Make) -> None:
    """A caller whose deadline passes is told so on time, whether its image waits or is being decoded."""
    held = await make(slots=1)
    held.hold(1)
    began = time.monotonic()
    tasks = [ask(held.decoder, image, seconds=0.2) for image in IMAGES[:2]]
    with within(1):
        assert [type(await outcome_of(task)) for task in tasks] == [DeadlineExceeded] * 2
    assert time.monotonic() - began > 0.15
    assert held.decoder.waiting == 0
    held.release()
    assert np.array_equal(await ask(held.decoder, IMAGES[2]), EXPECTED[2])


async def test_a_deadline_that_has_passed_begins_nothing(make: Make) -> None:
    """An image that comes too late is refused before it takes a slot."""
    held = await make(slots=1)
    with pytest.raises(DeadlineExceeded):
        await ask(held.decoder, IMAGES[0], seconds=-1)
    if isinstance(held, HeldThreads):
        assert held.begun == []


async def test_a_hanging_image_is_answered_at_its_limit_while_others_go_on(make: Make) -> None:
    """One image hangs and is told `image_too_complex` on time; those beside it and behind it are decoded."""
    held = await make(slots=2, timeout_seconds=2.0)
    held.hold(1)
    began = time.monotonic()
    pair = [ask(held.decoder, image) for image in IMAGES[:2]]
    for image, expected in zip(IMAGES[2:8], EXPECTED[2:8], strict=True):
        assert np.array_equal(await ask(held.decoder, image), expected)
    # One of the two is decoded beside the other, which hangs until its limit.
    await asyncio.wait(pair, return_when=asyncio.FIRST_COMPLETED)
    assert sum(task.done() for task in pair) == 1
    with within(4):
        outcomes = [await outcome_of(task) for task in pair]
    assert time.monotonic() - began > 1.8
    hung = [outcome for outcome in outcomes if isinstance(outcome, ImageTooComplex)]
    assert len(hung) == 1
    assert "2 seconds" in hung[0].detail
    assert sum(isinstance(outcome, np.ndarray) for outcome in outcomes) == 1
    tasks = [ask(held.decoder, image) for image in IMAGES]
    for task, expected in zip(tasks, EXPECTED, strict=True):
        assert np.array_equal(await task, expected)


async def test_formats_and_seconds_are_observed(make: Make) -> None:
    """Each image that was decoded is told with its format and a time; one that was refused is not."""
    seen: list[tuple[str, float]] = []
    decoder = (await make(observe=lambda image_format, seconds: seen.append((image_format, seconds)))).decoder
    for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        await ask(decoder, encode(Image.new("RGB", (64, 64)), image_format))
    await outcome_of(ask(decoder, IMAGES[0][:300]))
    assert [image_format for image_format, _ in seen] == ["jpeg", "png", "webp", "gif", "bmp"]
    assert all(0 < seconds < 30 for _, seconds in seen)


async def test_a_closed_decoder_refuses(make: Make) -> None:
    """Closing answers what waits and what comes, and does not wait for what hangs."""
    held = await make(slots=1)
    held.hold(1)
    tasks = [ask(held.decoder, image) for image in IMAGES[:2]]
    await until(lambda: held.decoder.waiting == 1)
    with anyio.fail_after(20):
        await held.decoder.close()
    assert isinstance(await outcome_of(tasks[1]), EngineUnavailable)
    assert isinstance(await outcome_of(ask(held.decoder, IMAGES[2])), EngineUnavailable)
    held.release()
    await outcome_of(tasks[0])


@pytest.mark.parametrize("decoder", ["threads", "processes"])
def test_the_service_answers_with_either(decoder: str) -> None:
    """The setting picks the decoder, requests are answered the same, and the metrics show it."""
    settings = Settings(backend="null", port=0, log_level="error", decoder=decoder, decode_threads=1)

    with running_server(settings) as server, httpx.Client(base_url=server.address, timeout=30) as client:
        for image in IMAGES[:3]:
            predictions = post_image(client, image).json()["predictions"]
            assert tuple(prediction["class_id"] for prediction in predictions[:2]) == null_classes(image)
        refused = client.post("/predict", content=made.scan_bomb((64, 64), 100))
        assert (refused.status_code, refused.json()["code"]) == (422, "image_too_complex")
        metrics = client.get("/metrics").text
    assert 'resnet_decode_seconds_count{format="jpeg"} 3.0' in metrics
    assert "resnet_decode_slots_lost 0.0" in metrics


async def test_callers_leave_as_their_turn_comes(make: Make) -> None:
    """Callers that leave in the moment in which a slot is free, and just after, cost those behind them nothing."""
    held = await make(slots=1, max_waiting=64)
    for _ in range(5):
        held.hold(1)
        tasks = [ask(held.decoder, image) for image in IMAGES]
        await until(lambda: held.decoder.waiting == len(IMAGES) - 1)
        held.release()
        for number, task in enumerate(tasks):
            if number % 3 == 1:
                await asyncio.wait(tasks[:number], return_when=asyncio.FIRST_COMPLETED)
                task.cancel()
        for number, (task, expected) in enumerate(zip(tasks, EXPECTED, strict=True)):
            outcome = await outcome_of(task)
            is_gone = number % 3 == 1 and isinstance(outcome, asyncio.CancelledError)
            assert is_gone or np.array_equal(outcome, expected)  # type: ignore[arg-type]
        await until(lambda: (held.decoder.waiting, held.decoder.lost, held.decoder.usable) == (0, 0, 1))


# --- threads


@pytest.fixture
async def held_threads(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HeldThreads]:
    held = HeldThreads(monkeypatch, slots=2, spare=1, max_waiting=64, timeout_seconds=0.5)
    yield held
    held.release()
    await held.decoder.close()


async def test_hanging_threads_are_replaced_until_the_memory_is_used_up(held_threads: HeldThreads) -> None:
    """With a spare the first hang costs no slot; the next ones do, and with none left all is refused at once."""
    decoder = held_threads.decoder
    for lost, usable in ((1, 2), (2, 1), (3, 0)):
        held_threads.hold(1)
        assert isinstance(await outcome_of(ask(decoder, IMAGES[0])), ImageTooComplex)
        assert (decoder.lost, decoder.usable) == (lost, usable)
        if usable:
            assert np.array_equal(await ask(decoder, IMAGES[1]), EXPECTED[1])
    with within(0.1):
        assert isinstance(await outcome_of(ask(decoder, IMAGES[2])), EngineUnavailable)
    held_threads.release()
    await until(lambda: decoder.lost == 0)
    assert decoder.usable == 2
    tasks = [ask(decoder, image) for image in IMAGES]
    for task, expected in zip(tasks, EXPECTED, strict=True):
        assert np.array_equal(await task, expected)


async def test_threads_take_the_next_image_without_the_event_loop(held_threads: HeldThreads) -> None:
    """While the event loop is busy with something else, what waits is decoded, one image after another."""
    tasks = [ask(held_threads.decoder, image) for image in IMAGES]
    await anyio.lowlevel.checkpoint()  # each has asked
    wait_until(lambda: len(held_threads.begun) == len(IMAGES))
    assert not any(task.done() for task in tasks)
    for task, expected in zip(tasks, EXPECTED, strict=True):
        assert np.array_equal(await task, expected)


async def test_no_room_for_a_thread_is_told_and_tried_again(
    held_threads: HeldThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no room for a thread the image fails, nothing is left waiting, and the next one has one."""

    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_room)
        assert isinstance(await outcome_of(ask(held_threads.decoder, IMAGES[0])), RuntimeError)
    assert held_threads.decoder.waiting == 0
    assert np.array_equal(await ask(held_threads.decoder, IMAGES[1]), EXPECTED[1])


async def test_a_slot_that_comes_back_serves_again(held_threads: HeldThreads) -> None:
    """A hang that ends gives its slot back: as many images as before are decoded at once."""
    decoder = held_threads.decoder
    held_threads.hold(3)
    hung = [ask(decoder, image) for image in IMAGES[:3]]
    assert [type(await outcome_of(task)) for task in hung] == [ImageTooComplex] * 3
    held_threads.release()
    await until(lambda: decoder.lost == 0)
    assert (decoder.usable, decoder.stuck_seconds) == (2, 0.0)
    held_threads.begun.clear()
    held_threads.hold(2)
    tasks = [ask(decoder, image) for image in IMAGES[:3]]
    await until(lambda: len(held_threads.begun) == 2)
    assert decoder.waiting == 1
    held_threads.release()
    for task, expected in zip(tasks, EXPECTED[:3], strict=True):
        assert np.array_equal(await task, expected)


async def test_what_waits_is_refused_when_the_last_thread_is_lost(held_threads: HeldThreads) -> None:
    """Images that wait do not wait for threads that will not come back."""
    held_threads.hold(3)
    tasks = [ask(held_threads.decoder, image) for image in IMAGES[:6]]
    outcomes = [type(await outcome_of(task)) for task in tasks]
    assert outcomes == [ImageTooComplex] * 3 + [EngineUnavailable] * 3
    assert held_threads.decoder.waiting == 0


async def test_a_hang_that_begins_between_two_looks_is_noticed(
    held_threads: HeldThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that has just taken an image when hangs are looked for: it is in the queue or being decoded, so that
    there is another look, and its slot is counted as lost without another image."""
    decoder = held_threads.decoder
    assert isinstance(decoder, ThreadDecoder)
    begin = decoder._has_begun
    has_taken, is_looked_for = threading.Event(), threading.Event()

    def slowly(work: Any) -> None:
        has_taken.set()
        assert is_looked_for.wait(30)
        # Long enough for the look to come to an end, if it waits for nothing.
        threading.Event().wait(0.1)
        begin(work)

    monkeypatch.setattr(decoder, "_has_begun", slowly)
    held_threads.hold(1)
    hung = ask(decoder, IMAGES[0])
    await until(has_taken.is_set)
    is_looked_for.set()
    if decoder._timer is not None:
        decoder._timer.cancel()
    decoder._look_for_hangs()
    assert isinstance(await outcome_of(hung), ImageTooComplex)
    assert decoder.lost == 1


async def test_a_thread_is_lost_also_when_its_caller_has_left(held_threads: HeldThreads) -> None:
    """A hanging decode is counted whether or not anybody still waits for it."""
    held_threads.hold(1)
    leaver = ask(held_threads.decoder, IMAGES[0])
    await until(lambda: held_threads.begun)
    leaver.cancel()
    await until(lambda: held_threads.decoder.lost == 1)
    held_threads.release()
    await until(lambda: held_threads.decoder.lost == 0)


def test_a_hanging_thread_does_not_keep_the_process_alive() -> None:
    """A service whose decode never ends can still exit."""
    program = """
import asyncio, threading, time
from app.checkpoints import published_resnet50_preprocessing
from app.images import threads
from tests.photos import LIMITS
threads.decode = lambda *arguments: threading.Event().wait()
async def main():
    decoder = threads.ThreadDecoder(LIMITS, slots=1, max_waiting=1, timeout_seconds=0.1)
    try:
        await decoder.decode(b"", published_resnet50_preprocessing(), time.monotonic() + 60)
    except Exception as error:
        print(type(error).__name__)
    await decoder.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ImageTooComplex\n"), done.stderr


# --- processes


def living(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_hanging_process_is_killed_and_replaced(make: Make) -> None:
    """At the limit the process is gone and another has its place."""
    held = await make(slots=1, timeout_seconds=0.5)
    if not isinstance(held, HeldProcesses):
        return
    [before] = held.decoder.process_ids
    held.hold(1)
    assert isinstance(await outcome_of(ask(held.decoder, IMAGES[0])), ImageTooComplex)
    assert np.array_equal(await ask(held.decoder, IMAGES[1]), EXPECTED[1])
    [after] = held.decoder.process_ids
    assert after != before
    assert not living(before)
    assert (held.decoder.lost, held.decoder.usable) == (0, 1)


async def test_a_process_is_killed_when_its_caller_has_left(processes: ProcessDecoder) -> None:
    """A decode that nobody waits for is not let run to its limit."""
    [before] = processes.process_ids
    os.kill(before, signal.SIGSTOP)
    leaver = ask(processes, IMAGES[0])
    await asyncio.wait([leaver], timeout=0.05)
    leaver.cancel()
    await until(lambda: not living(before))
    assert np.array_equal(await ask(processes, IMAGES[1]), EXPECTED[1])


async def test_a_caller_that_leaves_a_quick_decode_costs_no_process(processes: ProcessDecoder) -> None:
    """Clients who leave in the middle of an ordinary image cannot make the service start processes."""
    before = processes.process_ids
    for image in IMAGES:
        leaver = ask(processes, image)
        await asyncio.wait([leaver], timeout=0.001)
        leaver.cancel()
    assert np.array_equal(await ask(processes, IMAGES[1]), EXPECTED[1])
    assert processes.process_ids == before


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGSEGV, ImageCorrupt), (signal.SIGABRT, ImageCorrupt), (signal.SIGKILL, EngineUnavailable)],
)
async def test_a_crash_costs_its_own_image_alone(
    processes: ProcessDecoder, number: signal.Signals, error: type[ServiceError], caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder that crashes makes its image corrupt; killed from outside, it may come again."""
    [before] = processes.process_ids
    os.kill(before, signal.SIGSTOP)
    poison, good = ask(processes, IMAGES[0]), ask(processes, IMAGES[1])
    await until(lambda: processes.waiting == 1)
    await asyncio.wait([poison], timeout=0.05)
    os.kill(before, number)
    os.kill(before, signal.SIGCONT)
    assert type(await outcome_of(poison)) is error
    assert np.array_equal(await good, EXPECTED[1])
    assert processes.process_ids != [before]
    assert number.name in caplog.text


async def test_a_process_has_the_next_image_before_the_event_loop_has_its_turn(processes: ProcessDecoder) -> None:
    """While the event loop is busy with something else, a process decodes the image behind the one that it decodes."""
    tasks = [ask(processes, image) for image in IMAGES[:3]]
    await anyio.lowlevel.checkpoint()  # each has asked
    [(worker, works)] = processes._has.items()
    assert len(works) == 2
    wait_until(lambda: len(waiting_bytes(worker.fileno())) == 2 * decoding_messages.RECORD.size)
    assert not any(task.done() for task in tasks)
    for task, expected in zip(tasks, EXPECTED[:3], strict=True):
        assert np.array_equal(await task, expected)


def waiting_bytes(descriptor: int) -> bytes:
    """What could be read from a socket, which stays there."""
    with socket.socket(fileno=os.dup(descriptor)) as connection, suppress(BlockingIOError):
        return connection.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return b""


async def test_an_image_behind_one_that_hangs_is_decoded_by_another_process() -> None:
    """A process that has nothing to do takes over what another one has and has not begun."""
    decoder = ProcessDecoder(LIMITS, slots=2, memory_bytes=ONE_IMAGE_BYTES, max_waiting=64, timeout_seconds=60)
    await decoder.start()
    for process in decoder.process_ids:
        os.kill(process, signal.SIGSTOP)
    tasks = [ask(decoder, image) for image in IMAGES[:4]]
    await until(lambda: decoder.waiting == 2)
    hung, other = decoder._has
    os.kill(other.id, signal.SIGCONT)
    others_own, behind_it, behind_the_hung = tasks[1], tasks[3], tasks[2]
    assert np.array_equal(await others_own, EXPECTED[1])
    assert np.array_equal(await behind_it, EXPECTED[3])
    assert np.array_equal(await behind_the_hung, EXPECTED[2])
    assert not tasks[0].done()
    os.kill(hung.id, signal.SIGCONT)
    assert np.array_equal(await tasks[0], EXPECTED[0])
    assert np.array_equal(await ask(decoder, IMAGES[4]), EXPECTED[4])
    await decoder.close()


async def test_an_image_that_is_not_wanted_any_more_is_skipped(processes: ProcessDecoder) -> None:
    """A process passes over an image whose caller has left before it began; the next ones are decoded."""
    [process] = processes.process_ids
    os.kill(process, signal.SIGSTOP)
    first, leaver, last = (ask(processes, image) for image in IMAGES[:3])
    await until(lambda: processes.waiting == 2)
    [works] = processes._has.values()
    handed_over = list(works)[1]
    leaver.cancel()
    await until(lambda: processes.waiting == 1)
    os.kill(process, signal.SIGCONT)
    assert np.array_equal(await first, EXPECTED[0])
    assert np.array_equal(await last, EXPECTED[2])
    assert (handed_over.outcome.cancelled(), processes.process_ids) == (True, [process])


async def test_a_large_file_leaves_no_memory_behind(processes: ProcessDecoder) -> None:
    """What an unusually large image took of the shared memory is given back once it is decoded."""
    data = encode(made.noise((1500, 1500)), "PNG", compress_level=0)

    def shared_bytes() -> int:
        """Of the memory that this process maps and shares with decoders."""
        lines = Path("/proc/self/smaps").read_text().split("memfd:resnet-images")[1:]
        return sum(1024 * int(line.split("Rss:")[1].split()[0]) for line in lines)

    await ask(processes, IMAGES[0])
    before = shared_bytes()
    assert np.array_equal(await ask(processes, data), decode(data, RESNET50, LIMITS))
    assert shared_bytes() < before + 1_000_000 < len(data)


async def test_a_process_that_answers_nonsense_is_replaced(
    processes: ProcessDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that answers what it was not asked is killed; its image fails as internal, the one behind does not."""
    [process] = processes.process_ids
    os.kill(process, signal.SIGSTOP)
    first, second = ask(processes, IMAGES[0]), ask(processes, IMAGES[1])
    await until(lambda: processes.waiting == 1)
    [worker] = processes._has
    worker._asked.appendleft((9, (9, 9), 0))  # as if it had been asked for another place first
    os.kill(process, signal.SIGCONT)
    assert isinstance(await outcome_of(first), Internal)
    assert np.array_equal(await second, EXPECTED[1])
    assert processes.process_ids != [process]
    assert "could not be talked to" in caplog.text


async def test_an_answer_before_nonsense_counts(processes: ProcessDecoder) -> None:
    """Of two answers that come at once, the second one nonsense, the first one is its image's."""
    first, second = ask(processes, IMAGES[0]), ask(processes, IMAGES[1])
    await anyio.lowlevel.checkpoint()  # both have asked
    [worker] = processes._has
    worker._asked[1] = (9, (9, 9), 0)  # as if it had been asked for another place
    wait_until(lambda: len(waiting_bytes(worker.fileno())) == 2 * decoding_messages.RECORD.size)
    assert np.array_equal(await first, EXPECTED[0])
    assert isinstance(await outcome_of(second), Internal)


async def test_a_process_that_died_idle_costs_no_image(processes: ProcessDecoder) -> None:
    """A process that is gone before it is given an image is replaced, and the image is decoded."""
    [before] = processes.process_ids
    os.kill(before, signal.SIGKILL)
    await until(lambda: is_dead(before))
    assert np.array_equal(await ask(processes, IMAGES[0]), EXPECTED[0])


def is_dead(process_id: int) -> bool:
    """Whether it has ended, whether or not its parent has asked how."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_a_process_cannot_take_more_memory_than_one_image_needs() -> None:
    """An image over the memory of a slot is refused as too complex; the same process decodes the next one."""
    decoder = ProcessDecoder(LIMITS, slots=1, memory_bytes=40_000_000, max_waiting=64, timeout_seconds=60)
    try:
        await decoder.start()
        before = decoder.process_ids
        with pytest.raises(ImageTooComplex, match="memory"):
            await ask(decoder, encode(Image.new("RGB", (5000, 4000)), "PNG"))
        assert np.array_equal(await ask(decoder, IMAGES[0]), EXPECTED[0])
        assert decoder.process_ids == before
    finally:
        await decoder.close()


async def test_a_process_is_limited_and_knows_little(
    processes: ProcessDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel holds it to its memory, to no files and no core; it has no torch, no web server and no secrets."""
    monkeypatch.setenv("SOME_TOKEN", "secret")
    decoder = ProcessDecoder(LIMITS, slots=1, memory_bytes=ONE_IMAGE_BYTES, max_waiting=1, timeout_seconds=60)
    try:
        await decoder.start()
        await ask(decoder, IMAGES[0])
        folder = Path(f"/proc/{decoder.process_ids[0]}")
        limits = {line[:26].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()}
        mapped = (folder / "maps").read_text()
        environment = (folder / "environ").read_bytes()
    finally:
        await decoder.close()
    assert limits["Max core file size"] == limits["Max file size"] == "0"
    assert ONE_IMAGE_BYTES < int(limits["Max address space"]) < ONE_IMAGE_BYTES + 300_000_000
    assert "PIL" in mapped
    assert not [name for name in ("torch", "pydantic", "uvloop", "onnx", "_ssl") if f"/{name}" in mapped]
    assert b"SOME_TOKEN" not in environment


def test_a_process_imports_only_what_decoding_needs() -> None:
    """Neither torch nor FastAPI, and not asyncio either, is loaded where strangers' bytes are decoded."""
    program = "import sys, app.images.decoding_process; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"PIL", "numpy"} <= loaded
    assert loaded.isdisjoint({"torch", "torchvision", "fastapi", "starlette", "pydantic", "asyncio", "uvloop"})


async def test_closing_ends_every_process(processes: ProcessDecoder) -> None:
    """After `close` no process is left, not even one that hangs."""
    [before] = processes.process_ids
    os.kill(before, signal.SIGSTOP)
    hung = ask(processes, IMAGES[0])
    await asyncio.wait([hung], timeout=0.05)
    await processes.close()
    assert not living(before)
    assert processes.process_ids == []
    assert isinstance(await outcome_of(hung), EngineUnavailable)


async def test_closing_while_processes_start_leaves_none() -> None:
    """A decoder that is closed in its first moment leaves nothing behind."""
    decoder = ProcessDecoder(LIMITS, slots=2, memory_bytes=ONE_IMAGE_BYTES, max_waiting=1, timeout_seconds=60)
    starting = asyncio.create_task(decoder.start())
    await until(lambda: decoder.process_ids)
    await decoder.close()
    [outcome] = await asyncio.gather(starting, return_exceptions=True)
    assert outcome is None or isinstance(outcome, EngineUnavailable)
    assert decoder.process_ids == []


async def test_a_process_that_cannot_start_is_told_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no process starts, images are refused as retryable, and the log says why; later ones try again."""
    decoder = ProcessDecoder(LIMITS, slots=1, memory_bytes=ONE_IMAGE_BYTES, max_waiting=1, timeout_seconds=60)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent/python")
        with pytest.raises(EngineUnavailable):
            await ask(decoder, IMAGES[0])
    assert "could not be started" in caplog.text
    assert np.array_equal(await ask(decoder, IMAGES[0]), EXPECTED[0])
    await decoder.close()


def test_processes_end_with_a_service_that_is_killed(tmp_path: Path) -> None:
    """A service that cannot say good-bye leaves no decoding process behind."""
    environment = {"RESNET_BACKEND": "null", "RESNET_DECODER": "processes", "RESNET_DECODE_THREADS": "1"}
    with service_process(folder=tmp_path, environment=environment) as service:
        address = "http://" + service.wait_for("http://").partition("http://")[2].split()[0].rstrip(";,.")
        with httpx.Client(base_url=address, timeout=30) as client:
            wait_until(lambda: post_image(client, IMAGES[0]).status_code == 200)
        threads_of_it = Path(f"/proc/{service.process.pid}/task").glob("*/children")
        children = [int(word) for each in threads_of_it for word in each.read_text().split()]
        assert children
        service.process.kill()
        service.process.wait()
        wait_until(lambda: all(is_dead(child) for child in children))
