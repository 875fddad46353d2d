"""Memory that a decoder shares with one of its processes: an image goes in, its pixels come back in the same place.

Two places are enough: one image is decoded while the next one is there already.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ..shared_memory import create_shared_memory
from ..types import Pixels

PLACES = 2
# Before the places, a byte for each that says whether its image is still wanted.
_HEAD_BYTES = mmap.PAGESIZE
_UNWANTED, _WANTED = 0, 1
# What a place keeps of memory from one image to the next: a photo and more, and not a file of 60 MB for ever.
_KEPT_BYTES = 1024 * 1024


def create_exchange(place_bytes: int) -> int:
    """The descriptor of new memory; the caller closes it. Raises `OSError`."""
    return create_shared_memory("resnet-images", _HEAD_BYTES + PLACES * _whole_pages(place_bytes))


class Exchange:
    """The memory behind `descriptor`, mapped. A place is written by one side at a time, who asks or who answers."""

    def __init__(self, descriptor: int, place_bytes: int) -> None:
        """The descriptor stays the caller's. Raises `OSError`."""
        self.place_bytes = place_bytes
        self._stride = _whole_pages(place_bytes)
        self._memory = mmap.mmap(descriptor, _HEAD_BYTES + PLACES * self._stride)

    def put(self, place: int, data: bytes) -> None:
        """An image, or what is said of it; at most `place_bytes`."""
        begin = self._begin(place)
        self._memory[begin : begin + len(data)] = data

    def get(self, place: int, size: int) -> bytes:
        begin = self._begin(place)
        return self._memory[begin : begin + size]

    def put_pixels(self, place: int, pixels: Pixels) -> None:
        np.copyto(self._view(place, pixels.shape), pixels)

    def get_pixels(self, place: int, height: int, width: int) -> Pixels:
        """`(height, width, 3)` uint8, a copy."""
        return self._view(place, (height, width, 3)).copy()

    def want(self, place: int, wanted: bool) -> None:
        """By who asks: whether the image there is to be decoded, if that has not begun."""
        self._memory[place] = _WANTED if wanted else _UNWANTED

    def is_wanted(self, place: int) -> bool:
        return self._memory[place] == _WANTED

    def tidy(self, place: int, used_bytes: int) -> None:
        """The place is free again; what an unusually large image took is given back to the system."""
        if used_bytes > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):  # a kernel that does not do it for this memory
                self._memory.madvise(mmap.MADV_REMOVE, self._begin(place), _whole_pages(used_bytes))

    def _view(self, place: int, shape: tuple[int, ...]) -> Pixels:
        return np.ndarray(shape, np.uint8, self._memory, self._begin(place))

    def _begin(self, place: int) -> int:
        return _HEAD_BYTES + place * self._stride


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
