"""The interface of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from ..types import Pixels, Preprocessing
from .cost import Cost

Observe = Callable[[str, float], None]
"""Is told of each image that was decoded: its format (`image_format`), and how many seconds that took."""


class Decoder(Protocol):
    """Decodes a few images at once, holds a bounded number more, and gives no image longer than its time limit."""

    slots: int
    """Images decoded at once."""

    @property
    def waiting(self) -> int:
        """Images whose decoding has not begun."""
        ...

    @property
    def lost(self) -> int:
        """Decodes that are over their time limit and have not ended yet: memory and CPU that nobody can use."""
        ...

    @property
    def usable(self) -> int:
        """Slots that an image can still get, now or once it is free; with none of them, nothing is decoded."""
        ...

    def cost_of(self, data: bytes) -> Cost:
        """What an image's header says of the work to decode it."""
        ...

    def predicted_seconds(self, cost: Cost | None = None, batch: Hashable | None = None) -> float:
        """Until an image that came now would be decoded; None stands for an image like those before it."""
        ...

    @property
    def stuck_seconds(self) -> float:
        """How long no slot has been usable; 0 while one is."""
        ...

    async def start(self) -> None:
        """Make ready what decoding needs, so that the first image does not wait for it. May be left out."""
        ...

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, deadline: float, batch: Hashable | None = None
    ) -> Pixels:
        """`(height, width, 3)` uint8 of `preprocessing.crop`; cancelling the call takes the image out of the queue.

        `deadline` is an absolute monotonic time; `batch` is the request, where that carries several images.
        Raises the image's own errors (`UnsupportedImageFormat`, `ImageTooLarge`, `ImageTooComplex`, also at the time
        limit, and `ImageCorrupt`), `Overloaded`, `DeadlineExceeded`, or `EngineUnavailable` where no slot is usable.
        """
        ...

    async def close(self) -> None:
        """Refuse what waits, and end what can be ended."""
        ...


def too_slow(seconds: float) -> str:
    """What is said of an image at the time limit."""
    return f"Decoding this image takes longer than the {seconds:g} seconds that this server allows."
