"""Admission control: each image reserves time on the device from its admission to its answer.

Queue lengths alone would admit several times more images than the device can run, because an image between two queues
is in neither. A reservation covers decoding, waiting and inference, so every image that is decoded can be answered.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ..errors import Overloaded
from .forecast import DeviceForecast
from .headroom import Headroom
from .shedding import retry_after_seconds
from .waiting import WaitingImages

Shed = Literal["full", "late"]

# A request whose headers were accepted counts as an image ahead for this long. Most bodies end sooner. A slower upload
# counts again from the end of its body, so slow clients reserve nothing.
_ANNOUNCED_SECONDS = 0.1
# The longest time for which a refusal is repeated: the reservations of other processes may change meanwhile.
_REPEATED_SECONDS = 0.005


@dataclass(slots=True, eq=False)
class Reservation:
    """The reservation of one image. All times are absolute."""

    deadline: float
    made_at: float
    expected_at: float
    """The time of the answer, as predicted at admission."""
    is_held: bool = True


@dataclass(slots=True, eq=False)
class Announcement:
    """A request whose body has not arrived. For a short time it counts like a reservation."""

    made_at: float


class SharedReservations(Protocol):
    """The numbers of reservations of all processes that share a device."""

    def others(self) -> int:
        """The reservations of the other processes."""
        ...

    def publish(self, held: int) -> None:
        """Publish the number of reservations of this process."""
        ...


class Schedule:
    """Admits images and keeps their reservations. Belongs to one event loop.

    An image is admitted if it and all images admitted before it can still meet their deadlines. The start of its batch
    is predicted from the reservations ahead of it. At most `most_waiting` images wait beside those that fill the
    device. Without any reservation an image is always admitted: a prediction that only refuses is never corrected.
    """

    def __init__(
        self,
        most_waiting: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        count_shed: Callable[[Shed], None] = lambda reason: None,
        shared: SharedReservations | None = None,
    ) -> None:
        """`shared` counts the reservations of all processes, where several share a device."""
        self.headroom = Headroom()
        self._most_waiting = most_waiting
        self._clock = clock
        self._count_shed = count_shed
        self._shared = shared
        self._deadlines: list[float] = []
        self._announced: OrderedDict[Announcement, None] = OrderedDict()
        # The last refusal by `check`, for as long as it may be repeated.
        self._repeated: _Repeated | None = None

    @property
    def held(self) -> int:
        """The number of reservations of this process."""
        return len(self._deadlines)

    def check(self, device: DeviceForecast, seconds: float, decode_seconds: float = 0.0) -> None:
        """Raise `Overloaded` unless an image would be admitted whose body ended now, with a deadline in `seconds`.

        `decode_seconds` is the predicted time until it is decoded.
        """
        now = self._clock()
        try:
            self._expected_at(device, now, now + seconds, decode_seconds, self._still_announced(now))
        except _Refused as refused:
            # While nothing else changes, only the passing of time reduces the lateness, so the refusal holds that long.
            late_for = math.inf if refused.reason == "full" else refused.wait_seconds
            until = now + min(late_for, _REPEATED_SECONDS)
            self._repeated = _Repeated(until, seconds, refused.reason, refused.wait_seconds)
            raise self._overloaded(refused.reason, refused.wait_seconds) from None

    def repeat_refusal(self, seconds: float) -> None:
        """Raise `Overloaded` if `check` refused an image a moment ago and nothing has changed since.

        Under overload this refuses most requests, without a forecast of the device or the decoder. `seconds` is as for
        `check`. An image with another deadline may have another position and be admitted, so it is refused here only
        if the schedule is full.
        """
        repeated = self._repeated
        if (
            repeated is not None
            and self._clock() < repeated.until
            and (repeated.reason == "full" or repeated.seconds == seconds)
        ):
            raise self._overloaded(repeated.reason, repeated.wait_seconds)

    def announce(self) -> Announcement:
        """Count a request whose headers were accepted, until `withdraw` or for a tenth of a second."""
        announcement = Announcement(self._clock())
        self._announced[announcement] = None
        self._repeated = None
        return announcement

    def withdraw(self, announcement: Announcement) -> None:
        """Stop counting a request: its body has ended or will not arrive. May be called again."""
        self._announced.pop(announcement, None)
        self._repeated = None

    def reserve(self, device: DeviceForecast, deadline: float, decode_seconds: float = 0.0) -> Reservation:
        """Admit an image whose body has ended. Raises `Overloaded`.

        `deadline` is absolute. `decode_seconds` is the predicted time until the image is decoded.
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
        """End the reservation of an image that was answered or cancelled. May be called again."""
        if reservation.is_held:
            reservation.is_held = False
            del self._deadlines[bisect_left(self._deadlines, reservation.deadline)]
            self._changed()

    def observe(self, reservation: Reservation, *, answered: bool) -> None:
        """Record the error of the prediction for an image that was answered just now or missed its deadline."""
        budget = reservation.deadline - reservation.made_at
        if budget > 0:
            late_by = self._clock() - reservation.expected_at if answered else budget
            self.headroom.observe(late_by / budget)

    def predicted_wait_seconds(self, device: DeviceForecast) -> float:
        """Seconds until the batch of a new image would start, with the latest deadline and decoded now."""
        return device.starts_in(max(0, self.held + self._others() - len(device.running)))

    def _expected_at(
        self, device: DeviceForecast, now: float, deadline: float, decode_seconds: float, announced: int
    ) -> float:
        """The predicted time of the answer for an image with this deadline. Raises `_Refused`."""
        others = self._others() + announced
        held = len(self._deadlines) + others
        if held >= self._most_waiting + device.capacity:
            raise _Refused("full", device.starts_in(held - len(device.running)))
        waiting = WaitingImages(self._deadlines, device, others)
        own = waiting.position_of(deadline)
        position = waiting.others_waiting + own
        starts_in = device.starts_in(position)
        expected_at = now + device.ends_in(position) + max(0.0, decode_seconds - starts_in)
        late_by = expected_at + self.headroom.share * max(0.0, deadline - now) - deadline
        late_by = max(late_by, waiting.lateness_after(own, now))
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
    """An image is not admitted: the reason, and the seconds by which it would be late or would have to wait."""

    def __init__(self, reason: Shed, wait_seconds: float) -> None:
        self.reason: Shed = reason
        self.wait_seconds = wait_seconds


class _Repeated(NamedTuple):
    """A refusal that applies to the next images too."""

    until: float
    seconds: float
    """From the end of the refused image's body to its deadline."""
    reason: Shed
    wait_seconds: float
