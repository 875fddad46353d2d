"""Decoding ordinary JPEGs on a device, many at a time, beside threads that decode everything else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable

from ..errors import StartError
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe
from .cost import Cost
from .decode import DecodeLimits, decode
from .device_check import open_checked
from .device_images import DeviceImage, JpegDevice, device_image
from .device_lists import Count, DeviceLists
from .threads import ThreadDecoder

logger = logging.getLogger(__name__)

# A list's pixels on the device, where it has more than one image: 14 photos of 12 megapixels.
_MAX_LIST_BYTES = 512_000_000
_MAX_LIST_IMAGES = 32
# To import torch, to make a CUDA context and to check; a device that hangs would leave the service loading for ever.
_START_SECONDS = 120.0


class DeviceDecoder:
    """A `Decoder` whose JPEGs a device decodes, where it does that as the CPU does: `device_image` says which.

    An image is first looked at in a slot of the threads, under their queue, time limit and limits. What is not the
    device's is decoded there and then. What is goes into the device's list, with a queue and a time limit of the same
    size; and what the device does not decode after all goes back to the threads, which know what to say of it.

    An image of any kind may need the threads: they say whether this decoder is usable.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        open_device: Callable[[], JpegDevice],
        *,
        slots: int,
        spare: int = 0,
        max_waiting: int,
        timeout_seconds: float,
        mode: DecodeMode = "exact",
        observe: Observe = lambda image_format, seconds: None,
        count: Count = lambda outcome: None,
        clock: Callable[[], float] = time.monotonic,
        max_list_images: int = _MAX_LIST_IMAGES,
        max_list_bytes: int = _MAX_LIST_BYTES,
    ) -> None:
        """`open_device` is called by `start`, and may take seconds. `mode` is the threads': on the device all of an
        image is decoded, and the crop is exact.
        """
        self.slots = slots
        self._limits = limits
        self._mode: DecodeMode = mode
        self._open_device = open_device
        self._max_list_bytes = max_list_bytes
        self._threads = ThreadDecoder(
            limits,
            slots=slots,
            spare=spare,
            max_waiting=max_waiting,
            timeout_seconds=timeout_seconds,
            mode=mode,
            observe=observe,
            clock=clock,
        )
        self._lists = DeviceLists(
            max_images=max_list_images,
            max_bytes=max_list_bytes,
            max_waiting=max_waiting,
            timeout_seconds=timeout_seconds,
            observe=observe,
            count=count,
            clock=clock,
        )

    @property
    def waiting(self) -> int:
        return self._threads.waiting + self._lists.waiting

    @property
    def lost(self) -> int:
        return self._threads.lost + self._lists.lost

    @property
    def usable(self) -> int:
        return self._threads.usable

    def cost_of(self, data: bytes) -> Cost:
        return self._threads.cost_of(data)

    def predicted_seconds(self, cost: Cost | None = None, batch: Hashable | None = None) -> float:
        """The longer of the two: which of them an image needs is not known before it is there."""
        return max(self._threads.predicted_seconds(cost, batch), self._lists.predicted_wait_seconds)

    @property
    def stuck_seconds(self) -> float:
        return self._threads.stuck_seconds

    async def start(self) -> None:
        """Open the device and hold it to the CPU's decode. Raises `StartError` where it is not there or is wrong."""
        await self._threads.start()
        try:
            async with asyncio.timeout(_START_SECONDS):
                device = await self._lists.open(lambda: open_checked(self._open_device))
        except TimeoutError:
            raise StartError(
                f"The GPU has not decoded two small JPEGs within {_START_SECONDS:g} s. Look at it with nvidia-smi, or "
                "set RESNET_DECODER (--decoder) to threads."
            ) from None
        logger.info("Ordinary JPEGs are decoded on %s.", device.name)

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, deadline: float, batch: Hashable | None = None
    ) -> Pixels:
        """As `Decoder` says. A list that has begun runs to its end, also when a caller has left."""
        if self._lists.is_on:
            found = await self._threads.run(lambda: self._looked_at(data, preprocessing), data, deadline, batch)
            if not isinstance(found, DeviceImage):
                return found
            pixels = await self._lists.run(found, deadline)
            if pixels is not None:
                return pixels
        return await self._threads.decode(data, preprocessing, deadline, batch)

    async def close(self) -> None:
        """Refuse what waits, and end what can be ended."""
        await self._threads.close()
        await self._lists.close()

    def _looked_at(self, data: bytes, preprocessing: Preprocessing) -> Pixels | DeviceImage:
        """The image's pixels, or what the device is to be told of it."""
        image = device_image(data, preprocessing, self._limits)
        if image is not None and image.decoded_bytes <= self._max_list_bytes:
            return image
        return decode(data, preprocessing, self._limits, self._mode)
