"""Lists of JPEGs for a device: while one is decoded the next one forms."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..errors import DeadlineExceeded, DeviceLost, EngineUnavailable, OutOfMemory, Overloaded
from ..threads import Threads
from ..types import Pixels
from .base import Observe
from .device_images import DeviceImage, JpegDevice
from .queued import CLOSED

logger = logging.getLogger(__name__)

Count = Callable[[str], None]
"""Is told of each image that a device was given what became of it: "decoded", or "refused", which is for the CPU."""

# After a list that the memory did not hold, lists are as large as its half, and grow again by this with each that fits.
_GROWTH = 1.05


class Usual:
    """How long a piece of work takes: about the last twenty say what is usual."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) / (20 if self.seconds else 1)


class DeviceLists:
    """Work-conserving: an idle device begins at once with what there is, and an image waits only while it is busy.

    A list has at most `max_images`, and at most `max_bytes` of pixels where it has more than one. An image that the
    device does not decode is answered with None: it is for the CPU. So is everything once the device is lost, or a list
    has been over `timeout_seconds`; a device that hangs is not asked again. Belongs to one event loop.
    """

    def __init__(
        self,
        *,
        max_images: int,
        max_bytes: int,
        max_waiting: int,
        timeout_seconds: float,
        observe: Observe = lambda image_format, seconds: None,
        count: Count = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_on = False
        """Whether the device is asked at all."""
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._count = count
        self._clock = clock
        self._thread: Threads | None = None
        self._device: JpegDevice | None = None
        self._forming: deque[_Work] = deque()
        self._running: list[_Work] = []
        self._is_over_time = False
        self._room = max_bytes
        self._usual = Usual()

    @property
    def waiting(self) -> int:
        return len(self._forming)

    @property
    def lost(self) -> int:
        """Images of a list that is over the time limit and has not ended."""
        return len(self._running) if self._is_over_time else 0

    @property
    def predicted_wait_seconds(self) -> float:
        """How long an image that came now would wait: for those before it, at what one of a list usually takes."""
        is_busy = self.is_on and self._running
        return (len(self._running) + len(self._forming)) * self._usual.seconds if is_busy else 0.0

    async def open(self, open_device: Callable[[], JpegDevice]) -> JpegDevice:
        """Have the device opened, on the thread that is the only one to call it, and use it from here on."""
        self._thread = Threads(1, "decode_device")
        self._device = await self._thread.run(open_device)
        self.is_on = True
        return self._device

    async def run(self, image: DeviceImage, deadline: float) -> Pixels | None:
        """The image's crop, or None where it is for the CPU; cancelling the call takes it out of the list that forms.

        Raises `Overloaded` where too many wait, `DeadlineExceeded`, and `EngineUnavailable` once closed.
        """
        if not self.is_on:
            return None
        if self._clock() >= deadline:
            raise DeadlineExceeded()
        if self._running and len(self._forming) >= self._max_waiting:
            raise Overloaded(retry_after_seconds=1.0)
        work = _Work(image, asyncio.get_running_loop().create_future())
        self._forming.append(work)
        self._begin()
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                return await work.outcome
        except TimeoutError:
            raise DeadlineExceeded() from None
        finally:
            with suppress(ValueError):
                self._forming.remove(work)
            del work  # an error would hold the image as long as it is held itself

    async def close(self) -> None:
        """Refuse what waits. A list that runs ends by itself; its thread holds up no exit."""
        was_on, self.is_on = self.is_on, False
        for work in self._forming:
            if not work.outcome.done():
                work.outcome.set_exception(EngineUnavailable(CLOSED))
        self._forming.clear()
        if self._thread is None:
            return
        if was_on and not self._running and self._device is not None:
            await self._thread.run(self._device.close)
        self._thread.stop()

    def _begin(self) -> None:
        """The next list, if the device is free and anybody waits."""
        if self._running or self._device is None or self._thread is None:
            return
        works = self._running = self._take()
        if not works:
            return
        loop = asyncio.get_running_loop()
        limit = loop.call_later(self._timeout_seconds, self._hangs)
        device, images, began = self._device, [work.image for work in works], self._clock()

        def call() -> None:
            decoded: Decoded | None = None
            error: BaseException | None = None
            try:
                decoded = decode_list(device, images)
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(ended, decoded, error)

        def ended(decoded: Decoded | None, error: BaseException | None) -> None:
            limit.cancel()
            self._has_ended(works, decoded, error, self._clock() - began)

        self._thread.begin(call)

    def _take(self) -> list[_Work]:
        """Of those that wait, in their order, as many as a list may have; who has left is left out."""
        works: list[_Work] = []
        taken = 0
        while self._forming and len(works) < self._max_images:
            work = self._forming[0]
            if not work.outcome.done():
                taken += work.image.decoded_bytes
                if works and taken > self._room:
                    break
                works.append(work)
            self._forming.popleft()
        return works

    def _has_ended(
        self, works: list[_Work], decoded: Decoded | None, error: BaseException | None, seconds: float
    ) -> None:
        if decoded is None:
            self._turn_off(f"{error}.")
        else:
            self._answer(works, decoded.pixels, seconds)
            taken = sum(work.image.decoded_bytes for work in works)
            if decoded.ran_out_of_memory:
                self._room = max(1, min(self._room, taken) // 2)
            else:
                self._room = min(self._max_bytes, int(self._room * _GROWTH) + 1)
        self._running, self._is_over_time = [], False
        if self.is_on:
            self._begin()

    def _answer(self, works: list[_Work], pixels: list[Pixels | None], seconds: float) -> None:
        for work, crop in zip(works, pixels, strict=True):
            if not work.outcome.done():
                work.outcome.set_result(crop)
            if self.is_on:  # else it was over the time limit, and is with the CPU
                self._count("refused" if crop is None else "decoded")
                if crop is not None:
                    self._observe("jpeg", seconds)
        self._usual.took(seconds / len(works))

    def _hangs(self) -> None:
        """The list is over the time limit. What hangs cannot be ended, nor is it known for which image it does."""
        self._is_over_time = True
        self._turn_off(f"A list of {len(self._running)} took longer than {self._timeout_seconds:g} seconds.")

    def _turn_off(self, reason: str) -> None:
        if not self.is_on:
            return
        self.is_on = False
        logger.critical("%s Every image is decoded on the CPU until this server is started again.", reason)
        for work in (*self._running, *self._forming):
            if not work.outcome.done():
                work.outcome.set_result(None)
        self._forming.clear()


@dataclass(slots=True, eq=False)
class _Work:
    """An image that waits for its list, or is in one."""

    image: DeviceImage
    outcome: asyncio.Future[Pixels | None]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a device made of a list."""

    pixels: list[Pixels | None]
    """In the order of the list; None is for the CPU."""
    ran_out_of_memory: bool = False


def decode_list(device: JpegDevice, images: Sequence[DeviceImage]) -> Decoded:
    """Decode a list, and one that fails in halves, so that no image costs another its place on the device.

    An image that fails alone is the CPU's, which knows what to say of it. Raises `DeviceLost`.
    """
    ran_out = False
    try:
        found = device.decode(images)
        if len(found) == len(images):
            return Decoded([_if_it_fits(*pair) for pair in zip(found, images, strict=True)])
        logger.error("%s made %d images of %d.", device.name, len(found), len(images))
    except DeviceLost:
        raise
    except OutOfMemory:
        ran_out = True
    except Exception as error:
        logger.debug("%s failed on a list of %d: %s", device.name, len(images), error)
    if len(images) == 1:
        return Decoded([None], ran_out)
    half = len(images) // 2
    parts = [decode_list(device, images[:half]), decode_list(device, images[half:])]
    return Decoded([*parts[0].pixels, *parts[1].pixels], ran_out or any(part.ran_out_of_memory for part in parts))


def _if_it_fits(pixels: Pixels | None, image: DeviceImage) -> Pixels | None:
    return pixels if pixels is not None and pixels.shape == image.crop.shape else None
