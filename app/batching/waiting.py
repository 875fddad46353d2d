"""The images that wait for the device, ordered by deadline, and the lateness that one more image would cause."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from .forecast import DeviceForecast


class WaitingImages:
    """The images that wait for the device. Those of other processes count as ahead of all of this process."""

    def __init__(self, deadlines: Sequence[float], device: DeviceForecast, others: int) -> None:
        """`deadlines` are those of this process's reservations, sorted; other processes have `others` reservations."""
        self._waiting = list(deadlines)
        for deadline in device.running:
            index = bisect_left(self._waiting, deadline)
            if index < len(self._waiting) and self._waiting[index] == deadline:
                del self._waiting[index]
        own_running = len(deadlines) - len(self._waiting)
        self._device = device
        self.others_waiting = max(0, others - (len(device.running) - own_running))
        """Images of other processes that wait."""

    def position_of(self, deadline: float) -> int:
        """The number of this process's images ahead of an image with this deadline."""
        return bisect_right(self._waiting, deadline)

    def lateness_after(self, position: int, now: float) -> float:
        """The most seconds by which a new image at `position` would make an admitted image late; 0 if none.

        A batch that is not full takes longer with the new image. From a full batch the last image moves to the next
        batch, and so on through the later ones.
        """
        device, size, before = self._device, self._device.batch_size, self.others_waiting
        count = len(self._waiting)
        worst = 0.0
        first = (before + position) // size * size
        while True:
            # The image with the earliest deadline in the batch, the new image left out.
            index = max(0, first - before)
            index = index if index < position else max(index - 1, position)
            if index >= count:
                return worst
            was = now + device.ends_in(before + index, before + count - 1)
            is_now = now + device.ends_in(before + index + (index >= position), before + count)
            if was <= self._waiting[index]:
                worst = max(worst, is_now - self._waiting[index])
            first += size
