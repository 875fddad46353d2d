"""A card beside threads: which of them decodes what, and that no image is lost between them.

What holds for every decoder is in test_decoders.py; here the device is libjpeg, which does as it is told.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from app import server
from app.checkpoints import published_resnet50_preprocessing
from app.errors import (
    DeviceLost,
    EngineUnavailable,
    ImageCorrupt,
    ImageTooComplex,
    ImageTooLarge,
    Overloaded,
    SettingError,
    StartError,
)
from app.images import decode, on_device, threads
from app.images.device_images import DeviceImage
from app.images.on_device import DeviceDecoder
from app.settings import Settings, load_settings
from app.types import Pixels
from app.workers.division import count_workers
from tests import images_made as made
from tests.images_made import photo
from tests.jpeg_devices import ScriptedJpegs
from tests.photos import LIMITS, encode, make_jpeg, null_classes
from tests.running import post_image, running_server, wait_until

pytestmark = pytest.mark.anyio

RESNET50 = published_resnet50_preprocessing()
ORDINARY = [make_jpeg(seed, (64, 48)) for seed in range(12)]
OTHERS = [
    encode(photo(), progressive=True),
    encode(photo().convert("L")),
    encode(photo().resize((100, 100)), "PNG"),
    encode(photo().resize((100, 100)), "GIF"),
    encode(photo().resize((300, 3000))),
]


class Beside:
    """A device decoder, its device, and what its threads decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.device = ScriptedJpegs()
        self.by_threads: list[bytes] = []
        self.counted: list[str] = []
        self.observed: list[str] = []

        def seen(data: bytes, *how: Any) -> Pixels:
            self.by_threads.append(data)
            return decode(data, *how)

        monkeypatch.setattr(threads, "decode", seen)
        monkeypatch.setattr("app.images.on_device.decode", seen)
        self.decoder = DeviceDecoder(
            LIMITS,
            lambda: self.device,
            **{"slots": 2, "max_waiting": 64, "timeout_seconds": 60.0} | options,
            count=self.counted.append,
            observe=lambda image_format, seconds: self.observed.append(image_format),
        )

    async def start(self) -> None:
        await self.decoder.start()
        self.device.lists.clear()  # those of the check

    def ask(self, data: bytes) -> asyncio.Task[Pixels]:
        return asyncio.create_task(self.decoder.decode(data, RESNET50, time.monotonic() + 60))  # type: ignore[arg-type]

    def by_device(self) -> list[bytes]:
        return [data for files in self.device.lists for data in files]


@pytest.fixture
async def beside(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Beside]:
    it = Beside(monkeypatch)
    await it.start()
    yield it
    it.device.release()
    await it.decoder.close()


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def outcome_of(task: asyncio.Task[Any]) -> Any:
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    return outcome


def assert_exact(pixels: Pixels, data: bytes) -> None:
    assert np.array_equal(pixels, decode(data, RESNET50, LIMITS))


# --- who decodes what


async def test_ordinary_jpegs_are_the_device_s_and_all_else_the_threads(beside: Beside) -> None:
    """Each file is decoded once, by whom it is for, and comes out as exact mode has it."""
    files = [*ORDINARY, *OTHERS]
    for task, data in zip([beside.ask(data) for data in files], files, strict=True):
        assert_exact(await task, data)
    assert sorted(beside.by_device()) == sorted(ORDINARY)
    assert sorted(beside.by_threads) == sorted(OTHERS)
    assert beside.counted == ["decoded"] * len(ORDINARY)
    assert sorted(beside.observed) == ["gif", *["jpeg"] * (len(ORDINARY) + 3), "png"]


async def test_an_image_larger_than_a_list_s_memory_is_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No list is asked for that could not be within its bound."""
    it = Beside(monkeypatch, max_list_bytes=64 * 48 * 3)
    await it.start()
    large = make_jpeg(0, (65, 48))
    assert_exact(await it.ask(ORDINARY[0]), ORDINARY[0])
    assert_exact(await it.ask(large), large)
    assert (it.by_device(), it.by_threads) == ([ORDINARY[0]], [large])
    await it.decoder.close()


async def test_what_the_device_refuses_the_threads_decode_or_explain(beside: Beside) -> None:
    """A file that the device fails on has the CPU's pixels, or the CPU's error; those beside it stay on the device."""
    tables = ORDINARY[0].index(b"\xff\xc4")
    corrupt = ORDINARY[0][: tables + 5] + b"\xff" * 16 + ORDINARY[0][tables + 21 :]

    def before(images: Sequence[DeviceImage]) -> None:
        if any(image.data == ORDINARY[1] for image in images):
            raise RuntimeError("Failed to decode jpeg stream: 4")

    beside.device.before = before
    tasks = [beside.ask(data) for data in (corrupt, *ORDINARY[1:6])]
    assert isinstance(await outcome_of(tasks[0]), ImageCorrupt)
    for task, data in zip(tasks[1:], ORDINARY[1:6], strict=True):
        assert_exact(await task, data)
    assert sorted(beside.by_threads) == sorted([corrupt, ORDINARY[1]])
    assert sorted(beside.counted) == ["decoded"] * 4 + ["refused"] * 2


async def test_limits_are_kept_before_the_device_is_asked(beside: Beside) -> None:
    """What is too large or too complex is refused as ever, and the device never sees it."""
    for data, error in (
        (made.forged_jpeg(60_000, 60_000), ImageTooLarge),
        (made.scan_bomb((64, 64), 100), ImageTooComplex),
    ):
        assert isinstance(await outcome_of(beside.ask(data)), error)
    assert beside.by_device() == []


async def test_a_crowd_of_all_kinds_gets_its_own_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary files, others, failing ones, and clients that leave, all at once."""
    beside = Beside(monkeypatch, max_waiting=200)
    await beside.start()
    beside.device.before = lambda images: poison_in(images, ORDINARY[3])
    files = [*ORDINARY, *OTHERS] * 6
    tasks = [beside.ask(data) for data in files]
    for task in tasks[::7]:
        task.cancel()
    for number, (task, data) in enumerate(zip(tasks, files, strict=True)):
        if number % 7:
            assert_exact(await task, data)
    await until(lambda: beside.decoder.waiting == 0)
    assert (beside.decoder.lost, beside.decoder.usable) == (0, 2)
    assert len(beside.by_device()) > 50
    await beside.decoder.close()


def poison_in(images: Sequence[DeviceImage], poison: bytes) -> None:
    if any(image.data == poison for image in images):
        raise RuntimeError("Failed to decode jpeg stream: 3")


# --- a device that is lost, or hangs


async def test_after_the_device_is_lost_the_threads_decode_everything(
    beside: Beside, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody's image is lost with it, and it is not asked again."""

    def lost(images: Sequence[DeviceImage]) -> None:
        raise DeviceLost("card failed: illegal address")

    beside.device.before = lost
    for data in ORDINARY[:3]:
        assert_exact(await beside.ask(data), data)
    assert beside.by_device() == ORDINARY[:1]
    assert beside.by_threads == ORDINARY[:3]
    assert caplog.text.count("card failed") == 1
    assert beside.decoder.usable == 2


async def test_a_device_that_hangs_is_told_and_the_threads_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it hangs what waits for it is waiting, at the limit what it holds is lost, and every image is answered."""
    it = Beside(monkeypatch, timeout_seconds=1.0)
    await it.start()
    it.device.hold()
    first = it.ask(ORDINARY[0])
    await until(lambda: it.device.lists)
    others = [it.ask(data) for data in ORDINARY[1:4]]
    await until(lambda: it.decoder.waiting == 3)
    for task, data in zip([first, *others], ORDINARY[:4], strict=True):
        assert_exact(await task, data)
    assert (it.decoder.lost, it.decoder.waiting, it.decoder.usable) == (1, 0, 2)
    # Nothing is before the next image: what it waits for is its own decoding, as long as those before it took.
    assert 0 < it.decoder.predicted_seconds() < 1.0
    it.device.release()
    await until(lambda: it.decoder.lost == 0)
    await it.decoder.close()


async def test_a_busy_device_bounds_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the device held, as many images wait for it as may, and one more is refused; others' ways are open."""
    it = Beside(monkeypatch, max_waiting=2)
    await it.start()
    it.device.hold()
    tasks = [it.ask(ORDINARY[0])]
    await until(lambda: it.device.lists)
    for count in (1, 2):
        tasks.append(it.ask(ORDINARY[count]))
        await until(lambda count=count: it.decoder.waiting == count)
    assert isinstance(await outcome_of(it.ask(ORDINARY[3])), Overloaded)
    assert_exact(await it.ask(OTHERS[2]), OTHERS[2])
    it.device.release()
    for task, data in zip(tasks, ORDINARY, strict=False):
        assert_exact(await task, data)
    await it.decoder.close()


async def test_a_closed_decoder_closes_its_device_and_refuses(beside: Beside) -> None:
    """What comes after closing is refused, whoever would have decoded it."""
    await beside.decoder.close()
    assert beside.device.is_closed
    for data in (ORDINARY[0], OTHERS[0]):
        assert isinstance(await outcome_of(beside.ask(data)), EngineUnavailable)


async def test_a_device_that_is_wrong_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails with the check's words, and no image reaches the device."""
    it = Beside(monkeypatch)
    it.device.crop = lambda pixels, plan: np.zeros(plan.shape, np.uint8)  # type: ignore[method-assign]
    with pytest.raises(StartError, match="does not resize"):
        await it.decoder.start()
    assert_exact(await it.ask(ORDINARY[0]), ORDINARY[0])
    assert it.by_device() == []
    await it.decoder.close()


async def test_a_device_that_hangs_at_the_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that does not come back fails the start, with what to do, instead of leaving the service loading."""
    monkeypatch.setattr(on_device, "_START_SECONDS", 0.1)
    it = Beside(monkeypatch)
    it.device.is_open.clear()
    with pytest.raises(StartError, match=re.escape("set RESNET_DECODER (--decoder) to threads")):
        await it.decoder.start()
    it.device.release()
    assert_exact(await it.ask(ORDINARY[0]), ORDINARY[0])
    assert it.decoder.waiting == 0
    await it.decoder.close()


# --- the setting


def test_a_card_s_decoder_is_one_process_s() -> None:
    """`auto` takes one process; several, or no card, are refused with what to do."""
    assert count_workers(Settings(decoder="gpu"), cpus=64) == 1
    assert count_workers(Settings(decoder="gpu", http_workers=1), cpus=64) == 1
    for wrong in ({"http_workers": "2"}, {"device": "cpu"}):
        with pytest.raises(SettingError, match=re.escape("or RESNET_DECODER to threads")):
            load_settings(decoder="gpu", **wrong)


def test_without_a_card_the_service_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service does not start, and decodes nothing elsewhere in the card's place."""
    failed = asyncio.Event()
    failures: list[Exception] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = Settings(backend="null", port=0, log_level="error", decoder="gpu", decode_threads=1)

    def on_failure(error: Exception) -> None:
        failures.append(error)
        failed.set()

    hooks = server.Hooks(server.LogReporter(), on_failure=on_failure)

    async def run() -> None:
        app = server.create_app(settings, hooks)
        async with app.router.lifespan_context(app):
            await failed.wait()
            assert app.state.classifier.state().phase == "failed"

    asyncio.run(run())
    [failure] = failures
    assert isinstance(failure, SettingError)
    assert "Set RESNET_DECODER to threads" in str(failure)


def test_the_service_answers_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting picks the decoder, requests are answered as without it, and the metrics show who decoded."""
    device = ScriptedJpegs()
    monkeypatch.setattr(server, "open_jpeg_device", lambda name: device)
    settings = Settings(backend="null", port=0, log_level="error", decoder="gpu", decode_threads=1)
    with running_server(settings) as service, httpx.Client(base_url=service.address, timeout=30) as client:
        for image in (*ORDINARY[:3], encode(photo(), progressive=True)):
            predictions = post_image(client, image).json()["predictions"]
            assert tuple(prediction["class_id"] for prediction in predictions[:2]) == null_classes(image)
        refused = client.post("/predict", content=made.scan_bomb((64, 64), 100))
        assert (refused.status_code, refused.json()["code"]) == (422, "image_too_complex")
        metrics = client.get("/metrics").text
    assert 'resnet_device_decodes_total{outcome="decoded"} 3.0' in metrics
    assert 'resnet_decode_seconds_count{format="jpeg"} 4.0' in metrics
    assert device.is_closed
