"""The reservations in the device's schedule: one for each image, from its admission to its answer.

Admission by queue lengths accepts several times more images than the device can run, because an image between two
queues is in neither. A reservation is held through every stage, so that decoded images are answered.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ..errors import Overloaded
from .headroom import Headroom
from .shedding import retry_after_seconds

Shed = Literal["full", "late"]

# A body whose headers were accepted counts as an image ahead for so long: most bodies end within it. A longer upload
# counts from its end, so that slow clients hold no room in the schedule.
_ANNOUNCED_SECONDS = 0.1
# A refusal is repeated at most for so long: another process's reservations may have changed since.
_REPEATED_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class DeviceForecast:
    """What the device does now and how fast it is; times in seconds."""

    free_in_seconds: float
    """Until the next of its slots is free; 0 where one is."""
    running: Sequence[float]
    """The deadlines, absolute monotonic times, of the images in the batches that run whose callers still wait."""
    slots: int
    """Batches that run at once."""
    batch_size: int
    """Images in a full batch."""
    batch_seconds: float
    """What a full batch takes at most …"""
    single_seconds: float
    """… and what a single image does."""

    @property
    def capacity(self) -> int:
        """Images that can be on the device at once."""
        return self.slots * self.batch_size

    def starts_in(self, position: int) -> float:
        """Seconds until the batch of an image starts that `position` others are before which do not run yet."""
        return self.free_in_seconds + position // self.batch_size * self.batch_seconds / self.slots

    def ends_in(self, position: int, last: int | None = None) -> float:
        """Seconds until its batch ends. Images wait up to the position `last`, and up to its own at least.

        The batch may grow: an image is refused if its batch would become too slow for another image in it.
        """
        behind = max(0, (last or 0) - position)
        images = min(position % self.batch_size + 1 + behind, self.batch_size)
        each = (self.batch_seconds - self.single_seconds) / max(1, self.batch_size - 1)
        return self.starts_in(position) + self.single_seconds + (images - 1) * each


@dataclass(slots=True, eq=False)
class Reservation:
    """One image's part of the schedule; all times are absolute."""

    deadline: float
    made_at: float
    expected_at: float
    """When it was expected to be answered."""
    is_held: bool = True


@dataclass(slots=True, eq=False)
class Announcement:
    """A request whose body is still to come: no reservation, but for a moment it counts like one."""

    made_at: float


class SharedReservations(Protocol):
    """Reservations where several processes are one service."""

    def others(self) -> int:
        """How many the other processes hold."""
        ...

    def publish(self, held: int) -> None:
        """Tell the other processes how many this one holds."""
        ...


class Schedule:
    """Admits images and keeps their reservations. Belongs to one event loop.

    An image is admitted if it and all images admitted before it can still meet their deadlines. The reservations ahead
    of it, at most `most_waiting` beside those that fill the device, give the start of its batch. Where nothing is
    reserved an image is always admitted: a prediction that only refuses would never be corrected.
    """

    def __init__(
        self,
        most_waiting: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        count_shed: Callable[[Shed], None] = lambda reason: None,
        shared: SharedReservations | None = None,
    ) -> None:
        """Where several processes share a device, `shared` has the reservations of the other ones."""
        self.headroom = Headroom()
        self._most_waiting = most_waiting
        self._clock = clock
        self._count_shed = count_shed
        self._shared = shared
        self._deadlines: list[float] = []
        self._announced: OrderedDict[Announcement, None] = OrderedDict()
        # What `check` refused last, while it is repeated.
        self._repeated: _Repeated | None = None

    @property
    def held(self) -> int:
        """Reservations of this process."""
        return len(self._deadlines)

    def check(self, device: DeviceForecast, seconds: float, decode_seconds: float = 0.0) -> None:
        """Whether an image would be admitted if its body ended now and it had `seconds` from then on.

        `decode_seconds` is when it is expected to be decoded. Raises `Overloaded`.
        """
        now = self._clock()
        try:
            self._expected_at(device, now, now + seconds, decode_seconds, self._still_announced(now))
        except _Refused as refused:
            # Where nothing changes, only time makes room: an image that would be late by more is still late.
            late_for = math.inf if refused.reason == "full" else refused.wait_seconds
            until = now + min(late_for, _REPEATED_SECONDS)
            self._repeated = _Repeated(until, seconds, refused.reason, refused.wait_seconds)
            raise self._overloaded(refused.reason, refused.wait_seconds) from None

    def repeat_refusal(self, seconds: float) -> None:
        """Raise `Overloaded` where `check` would do so again: it did a moment ago, and nothing has changed since.

        Under overload this answers most requests, without a look at the device or the decoder. `seconds` are as for
        `check`. An image with less time goes ahead of others and may still be admitted; it is only refused here where
        the schedule is full.
        """
        repeated = self._repeated
        if (
            repeated is not None
            and self._clock() < repeated.until
            and (repeated.reason == "full" or repeated.seconds == seconds)
        ):
            raise self._overloaded(repeated.reason, repeated.wait_seconds)

    def announce(self) -> Announcement:
        """Count a request whose headers were accepted; `withdraw` ends that, and so does a tenth of a second."""
        announcement = Announcement(self._clock())
        self._announced[announcement] = None
        self._repeated = None
        return announcement

    def withdraw(self, announcement: Announcement) -> None:
        """Its body has ended, or never will. May be called again."""
        self._announced.pop(announcement, None)
        self._repeated = None

    def reserve(self, device: DeviceForecast, deadline: float, decode_seconds: float = 0.0) -> Reservation:
        """Admit an image whose body has ended. Raises `Overloaded`.

        `deadline` is absolute; `decode_seconds` from now it is expected to be decoded.
        """
        now = self._clock()
        try:
            expected_at = self._expected_at(device, now, deadline, decode_seconds, 0)
        except _Refused as refused:
            raise self._overloaded(refused.reason, refused.wait_seconds) from None
        insort(self._deadlines, deadline)
        self._changed()
        return Reservation(deadline, now, expected_at)

    def release(self, reservation: Reservation) -> None:
        """The image has been answered, or is not wanted any more. May be called again."""
        if reservation.is_held:
            reservation.is_held = False
            del self._deadlines[bisect_left(self._deadlines, reservation.deadline)]
            self._changed()

    def observe(self, reservation: Reservation, *, answered: bool) -> None:
        """Learn from an image that was answered just now, or missed its deadline: how wrong the prediction was."""
        budget = reservation.deadline - reservation.made_at
        if budget > 0:
            late_by = self._clock() - reservation.expected_at if answered else budget
            self.headroom.observe(late_by / budget)

    def predicted_wait_seconds(self, device: DeviceForecast) -> float:
        """How long an image with the usual deadline would wait for its batch to start, if it was decoded now."""
        return device.starts_in(max(0, self.held + self._others() - len(device.running)))

    def _expected_at(
        self, device: DeviceForecast, now: float, deadline: float, decode_seconds: float, announced: int
    ) -> float:
        """When an image with this deadline would be answered. Raises `_Refused` where it is not admitted."""
        others = self._others() + announced
        held = len(self._deadlines) + others
        if held >= self._most_waiting + device.capacity:
            raise _Refused("full", device.starts_in(held - len(device.running)))
        line = _Line(self._deadlines, device, others)
        own = line.place_of(deadline)
        position = line.before + own
        starts_in = device.starts_in(position)
        expected_at = now + device.ends_in(position) + max(0.0, decode_seconds - starts_in)
        late_by = expected_at + self.headroom.share * max(0.0, deadline - now) - deadline
        late_by = max(late_by, line.delays_by(own, now))
        if held and late_by > 0:
            raise _Refused("late", late_by)
        return expected_at

    def _overloaded(self, reason: Shed, wait_seconds: float) -> Overloaded:
        self._count_shed(reason)
        return Overloaded(retry_after_seconds=retry_after_seconds(wait_seconds))

    def _others(self) -> int:
        return self._shared.others() if self._shared is not None else 0

    def _changed(self) -> None:
        self._repeated = None
        if self._shared is not None:
            self._shared.publish(len(self._deadlines))

    def _still_announced(self, now: float) -> int:
        while self._announced:
            oldest = next(iter(self._announced))
            if now - oldest.made_at < _ANNOUNCED_SECONDS:
                break
            del self._announced[oldest]
        return len(self._announced)


class _Refused(Exception):
    """Why an image is not admitted, and by how many seconds."""

    def __init__(self, reason: Shed, wait_seconds: float) -> None:
        self.reason: Shed = reason
        self.wait_seconds = wait_seconds


class _Repeated(NamedTuple):
    """A refusal that holds for the images behind it too."""

    until: float
    seconds: float
    """The time that the refused image had."""
    reason: Shed
    wait_seconds: float


class _Line:
    """The images that wait for the device, by deadline. Those of other processes count as ahead of all others."""

    def __init__(self, deadlines: Sequence[float], device: DeviceForecast, others: int) -> None:
        self._waiting = list(deadlines)
        for deadline in device.running:
            index = bisect_left(self._waiting, deadline)
            if index < len(self._waiting) and self._waiting[index] == deadline:
                del self._waiting[index]
        own_running = len(deadlines) - len(self._waiting)
        self._device = device
        self.before = max(0, others - (len(device.running) - own_running))

    def place_of(self, deadline: float) -> int:
        """How many of this process's wait before an image with this deadline."""
        return bisect_right(self._waiting, deadline)

    def delays_by(self, place: int, now: float) -> float:
        """By how much an image at this place would make one late that was admitted before.

        Where its batch is not full, that takes longer. Else the last of it and of each later one moves to the next.
        """
        device, size, before, count = self._device, self._device.batch_size, self.before, len(self._waiting)
        worst = 0.0
        first = (before + place) // size * size
        while True:
            # The most urgent one in the batch, the new image left out.
            index = max(0, first - before)
            index = index if index < place else max(index - 1, place)
            if index >= count:
                return worst
            was = now + device.ends_in(before + index, before + count - 1)
            is_now = now + device.ends_in(before + index + (index >= place), before + count)
            if was <= self._waiting[index]:
                worst = max(worst, is_now - self._waiting[index])
            first += size
