"""Slots of memory that a front-end and the engine's process share: pixels go in, scores come back in their place."""

from __future__ import annotations

import mmap
from dataclasses import asdict, dataclass

import numpy as np

from ..processes.shared_memory import create_shared_memory, whole_pages
from ..types import Pixels, Scores


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
        return whole_pages(max(self.height * self.width * 3, 4 * self.classes))

    def as_fields(self) -> dict[str, int]:
        """For the layout's own constructor, in another process."""
        return asdict(self)

    @property
    def total_bytes(self) -> int:
        return self.count * self.slot_bytes


def create_segment(layout: SlotLayout) -> int:
    """The descriptor of new memory for `layout`; the caller closes it."""
    return create_shared_memory("resnet-slots", layout.total_bytes)


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
