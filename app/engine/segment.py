"""Slots of memory that a front-end and the engine's process share: pixels go in, scores come back in their place.

The memory is a memfd, passed by its descriptor. It has no name that could be left behind, lies in no /dev/shm (64 MB in
a container), and is gone with the last process that has it. Pages that no image has touched take no memory.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from dataclasses import asdict, dataclass

import numpy as np

from ..types import Pixels, Scores

_PAGE_BYTES = mmap.PAGESIZE
# That no process can cut it short under another, which reading it would then kill.
_SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """`count` slots, each for one image of `height` × `width` × 3 and then for the scores of `classes`."""

    height: int
    width: int
    classes: int
    count: int

    @property
    def slot_bytes(self) -> int:
        """Whole pages."""
        largest = max(self.height * self.width * 3, 4 * self.classes)
        return math.ceil(largest / _PAGE_BYTES) * _PAGE_BYTES

    def as_fields(self) -> dict[str, int]:
        """For the layout's own constructor, in another process."""
        return asdict(self)

    @property
    def total_bytes(self) -> int:
        return self.count * self.slot_bytes


def create_segment(layout: SlotLayout) -> int:
    """The descriptor of new memory for `layout`; the caller closes it. Linux only."""
    descriptor = os.memfd_create("resnet-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, layout.total_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, seal) for seal in _SEALS))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Segment:
    """The memory behind `descriptor`, mapped. It is unmapped when nobody holds a slot of it any more."""

    def __init__(self, descriptor: int, layout: SlotLayout) -> None:
        """The descriptor stays the caller's."""
        self.layout = layout
        self._memory = mmap.mmap(descriptor, layout.total_bytes)

    def pixels(self, slot: int) -> Pixels:
        """`(height, width, 3)` uint8, a view."""
        shape = (self.layout.height, self.layout.width, 3)
        return np.ndarray(shape, np.uint8, self._memory, slot * self.layout.slot_bytes)

    def scores(self, slot: int) -> Scores:
        """`(classes,)` float32, a view of the same memory."""
        return np.ndarray((self.layout.classes,), np.float32, self._memory, slot * self.layout.slot_bytes)
