"""What both decoders do alike: a bounded queue that callers can leave, deadlines, and the time limit of an image."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import DeadlineExceeded, EngineUnavailable, Overloaded, ServiceError
from .base import Observe
from .decode import image_format

T = TypeVar("T")
W = TypeVar("W", bound="Work[Any]")

ALL_LOST = "Every decoder is held by an image that takes longer than this server allows."
CLOSED = "This server decodes no more images."


@dataclass(slots=True, eq=False)
class Work(Generic[T]):
    """One image on its way. `began` is the monotonic time at which its decoding did."""

    data: bytes
    outcome: asyncio.Future[T]
    began: float = 0.0


class Usual:
    """How long a piece of work takes: about the last twenty say what is usual."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def took(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) / (20 if self.seconds else 1)


class QueuedDecoder(ABC, Generic[W]):
    """First come, first served. Belongs to one event loop.

    A decoder says how its work begins, what is being decoded, and what becomes of an image over its time limit.
    """

    def __init__(
        self, slots: int, max_waiting: int, timeout_seconds: float, observe: Observe, clock: Callable[[], float]
    ) -> None:
        self.slots = slots
        self.lost = 0
        self.usable = slots
        """Slots that are free or will be."""
        self._max_waiting = max_waiting
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._clock = clock
        self._refusal = ""
        self._usual = Usual()
        self._timer: asyncio.TimerHandle | None = None
        # What waits is held here and nowhere else, so that a caller that leaves takes its image along.
        self._queue: OrderedDict[W, None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def predicted_wait_seconds(self) -> float:
        ahead = self._ahead()
        return 0.0 if ahead < 0 else (ahead + 1) * self._usual.seconds / max(1, self.usable)

    @abstractmethod
    def _begin(self) -> None:
        """There is something in the queue: begin what can be. Raises what makes that impossible."""

    @abstractmethod
    def _begun(self) -> Iterable[W]:
        """What is being decoded and not lost."""

    @abstractmethod
    def _has_hung(self, work: W) -> None:
        """It is over its time limit, of which nobody has been told."""

    def _has_left(self, work: W) -> None:
        """Nobody waits for it any more; it is not in the queue."""

    async def _run(self, work: W, deadline: float) -> Any:
        """What becomes of a piece of work, as `Decoder.decode` says."""
        if self._refusal or not self.usable:
            raise EngineUnavailable(self._refusal or ALL_LOST, retry_after_seconds=5.0)
        left = deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded()
        if self._ahead() >= self._max_waiting:
            raise Overloaded(retry_after_seconds=1.0)
        loop = asyncio.get_running_loop()
        self._queue[work] = None
        too_late = loop.call_later(left, _is_late, work)
        try:
            self._begin()
            if self._timer is None:
                self._timer = loop.call_later(self._timeout_seconds, self._look_for_hangs)
            return await work.outcome
        finally:
            too_late.cancel()
            self._queue.pop(work, None)
            self._has_left(work)
            # It holds its error, whose frames hold this one: the image would wait for the garbage collector.
            del work

    def _ahead(self) -> int:
        """How many images wait beside those that have a slot, or will in a moment; below 0 where a slot is free."""
        return self.waiting + sum(1 for _ in self._begun()) - self.usable

    def _settle(self, work: W, result: object | None, error: BaseException | None, seconds: float) -> None:
        """Tell its caller, if there still is one, and whoever observes; `seconds` is what it took."""
        known = image_format(work.data) if isinstance(result, np.ndarray) else None
        if known is not None:
            self._observe(known, seconds)
        if work.outcome.done():
            return
        if result is not None:
            work.outcome.set_result(result)
        elif error is not None:
            work.outcome.set_exception(error)

    def _look_for_hangs(self) -> None:
        """Find what is over its time limit, and come back when the next one may be."""
        now = self._clock()
        for work in list(self._begun()):
            if now - work.began >= self._timeout_seconds:
                self._has_hung(work)
        self._timer = None
        begun = [work.began for work in self._begun()]
        if begun or self._queue:
            soonest = min(begun, default=now) + self._timeout_seconds
            self._timer = asyncio.get_running_loop().call_later(soonest - now, self._look_for_hangs)

    def _refuse_all(self, reason: str) -> None:
        while self._queue:
            with suppress(KeyError):  # a thread was quicker
                work, _ = self._queue.popitem(last=False)
                fail(work, EngineUnavailable(reason, retry_after_seconds=5.0))

    def _stop_taking(self) -> None:
        """Refuse what waits and what comes."""
        self._refusal = CLOSED
        self._refuse_all(CLOSED)
        if self._timer is not None:
            self._timer.cancel()


def fail(work: Work[Any], error: ServiceError) -> None:
    """Tell its caller, who may have been told already."""
    if not work.outcome.done():
        work.outcome.set_exception(error)


def _is_late(work: Work[Any]) -> None:
    fail(work, DeadlineExceeded())
