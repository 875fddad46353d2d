"""Slots of memory that a front-end and the engine's process share: an input goes in, scores come back in its place.

A slot is as large as a tensor. Pages that are never written take no memory: where only pixels travel, three quarters
of each slot are such pages.
"""

from __future__ import annotations

import mmap
from dataclasses import asdict, dataclass

import numpy as np

from ..processes.shared_memory import create_shared_memory, whole_pages
from ..types import InputSpec, Pixels, Scores, Tensor


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """`count` slots, each for one input of `height` × `width` and then for the scores of `classes`."""

    height: int
    width: int
    classes: int
    count: int

    @property
    def slot_bytes(self) -> int:
        """Whole pages."""
        return whole_pages(max(4 * 3 * self.height * self.width, 4 * self.classes))

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

    def tensor(self, slot: int) -> Tensor:
        """`(3, height, width)` float32, a view of the same memory."""
        shape = (3, self.layout.height, self.layout.width)
        return np.ndarray(shape, np.float32, self._memory, slot * self.layout.slot_bytes)

    def item(self, slot: int, spec: InputSpec) -> Pixels | Tensor:
        """The slot as an input of that kind."""
        return self.pixels(slot) if spec == InputSpec.PIXELS_U8 else self.tensor(slot)

    def scores(self, slot: int) -> Scores:
        """`(classes,)` float32, a view of the same memory."""
        return np.ndarray((self.layout.classes,), np.float32, self._memory, slot * self.layout.slot_bytes)
