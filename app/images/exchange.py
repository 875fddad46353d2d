"""Memory shared between a decoder and one of its processes: an image goes in, its pixels come back in the same buffer.

Two buffers are enough: one image is decoded while the next one is already there.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from ..processes.shared_memory import create_shared_memory, whole_pages
from ..types import Pixels

BUFFERS = 2
# Before the buffers, a byte for each that says whether its image is still wanted.
_HEAD_BYTES = mmap.PAGESIZE
_UNWANTED, _WANTED = 0, 1
# Memory that a buffer keeps from one image to the next: more than a photo needs, but not a file of 60 MB for ever.
_KEPT_BYTES = 1024 * 1024


def create_exchange(buffer_bytes: int) -> int:
    """The descriptor of new memory; the caller closes it. Raises `OSError`."""
    return create_shared_memory("resnet-images", _HEAD_BYTES + BUFFERS * whole_pages(buffer_bytes))


class Exchange:
    """The memory behind `descriptor`, mapped. One side at a time writes to a buffer: the one that asks or answers."""

    def __init__(self, descriptor: int, buffer_bytes: int) -> None:
        """The descriptor stays the caller's. Raises `OSError`."""
        self.buffer_bytes = buffer_bytes
        self._stride = whole_pages(buffer_bytes)
        self._memory = mmap.mmap(descriptor, _HEAD_BYTES + BUFFERS * self._stride)

    def put(self, buffer: int, data: bytes) -> None:
        """An encoded image or an error, of at most `buffer_bytes`."""
        begin = self._begin(buffer)
        self._memory[begin : begin + len(data)] = data

    def get(self, buffer: int, size: int) -> bytes:
        begin = self._begin(buffer)
        return self._memory[begin : begin + size]

    def put_pixels(self, buffer: int, pixels: Pixels) -> None:
        np.copyto(self._view(buffer, pixels.shape), pixels)

    def get_pixels(self, buffer: int, height: int, width: int) -> Pixels:
        """`(height, width, 3)` uint8, a copy."""
        return self._view(buffer, (height, width, 3)).copy()

    def want(self, buffer: int, wanted: bool) -> None:
        """Called by the asking side: whether the image there is to be decoded, if that has not begun."""
        self._memory[buffer] = _WANTED if wanted else _UNWANTED

    def is_wanted(self, buffer: int) -> bool:
        return self._memory[buffer] == _WANTED

    def tidy(self, buffer: int, used_bytes: int) -> None:
        """The buffer is free again; the memory of an unusually large image is returned to the system."""
        if used_bytes > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):  # a kernel that cannot do it for this memory
                self._memory.madvise(mmap.MADV_REMOVE, self._begin(buffer), whole_pages(used_bytes))

    def _view(self, buffer: int, shape: tuple[int, ...]) -> Pixels:
        return np.ndarray(shape, np.uint8, self._memory, self._begin(buffer))

    def _begin(self, buffer: int) -> int:
        return _HEAD_BYTES + buffer * self._stride
