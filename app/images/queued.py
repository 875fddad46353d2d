"""The common part of both decoders: a bounded queue with cancellation, deadlines and a time limit for each image."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import DeadlineExceeded, EngineUnavailable, Overloaded, ServiceError
from ..types import Pixels, Preprocessing
from .base import Observe
from .cost import Cost, Costs, cost_of
from .decode import image_format
from .fair import FairQueue

W = TypeVar("W", bound="Work")

ALL_LOST = "Every decoder is held by an image that takes longer than this server allows."
_CLOSED = "This server decodes no more images."


@dataclass(slots=True, eq=False)
class Work:
    """One image on its way. `seconds` is how long its decoding is expected to take, `began` the monotonic time when
    that began, and `batch` its request, where that carries several images.
    """

    data: bytes
    preprocessing: Preprocessing
    outcome: asyncio.Future[Pixels]
    cost: Cost
    seconds: float
    batch: Hashable | None = None
    began: float = 0.0


class QueuedDecoder(ABC, Generic[W]):
    """Shared fairly between requests (`FairQueue`). Belongs to one event loop.

    A decoder says how its work begins, what is being decoded, and what becomes of an image over its time limit.
    """

    def __init__(
        self,
        slots: int,
        max_waiting: int,
        timeout_seconds: float,
        observe: Observe,
        clock: Callable[[], float],
        max_megapixels: float,
    ) -> None:
        """An image above `max_megapixels` is refused by its header."""
        self.slots = slots
        self.lost = 0
        self.usable = slots
        """Slots that are free or will be."""
        self._max_waiting = max_waiting
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._clock = clock
        self._refusal = ""
        self._max_megapixels = max_megapixels
        self._costs = Costs()
        self._timer: asyncio.TimerHandle | None = None
        # What waits is held here and nowhere else, so that a caller that leaves takes its image along.
        self._queue: FairQueue[W] = FairQueue()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def cost_of(self, data: bytes) -> Cost:
        return cost_of(data, self._max_megapixels)

    def predicted_seconds(self, cost: Cost | None = None, batch: Hashable | None = None) -> float:
        own = self._costs.seconds(cost)
        slots = max(1, self.usable)
        before = self._queue.seconds_before(batch, own) / slots
        begun = list(self._begun())
        if len(begun) >= slots:
            now = self._clock()
            # What is over its estimate is expected to end now.
            before += min(max(0.0, work.seconds - (now - work.began)) for work in begun)
        return before + own

    def _work_of(self, data: bytes, batch: Hashable | None) -> tuple[Cost, float, Hashable | None]:
        """The rest of a `Work`, from its image's header."""
        cost = self.cost_of(data)
        return cost, self._costs.seconds(cost), batch

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

    async def _run(self, work: W, deadline: float) -> Pixels:
        """What becomes of a piece of work, as `Decoder.decode` says."""
        if self._refusal or not self.usable:
            raise EngineUnavailable(self._refusal or ALL_LOST, retry_after_seconds=5.0)
        left = deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded()
        if self._ahead() >= self._max_waiting:
            raise Overloaded(retry_after_seconds=1.0)
        loop = asyncio.get_running_loop()
        self._queue.put(work)
        too_late = loop.call_later(left, _is_late, work)
        try:
            self._begin()
            if self._timer is None:
                self._timer = loop.call_later(self._timeout_seconds, self._look_for_hangs)
            return await work.outcome
        finally:
            too_late.cancel()
            self._queue.discard(work)
            self._has_left(work)
            # It holds its error, whose frames hold this one: the image would wait for the garbage collector.
            del work

    def _ahead(self) -> int:
        """How many images wait beside those that have a slot, or will in a moment; below 0 where a slot is free."""
        return self.waiting + sum(1 for _ in self._begun()) - self.usable

    def _settle(self, work: W, pixels: Pixels | None, error: BaseException | None, seconds: float) -> None:
        """Tell its caller, if there still is one, and whoever observes; `seconds` is what it took."""
        self._charge(work, seconds)
        known = image_format(work.data) if pixels is not None else None
        if known is not None:
            self._observe(known, seconds)
            self._costs.took(work.cost, seconds)
        if work.outcome.done():
            return
        if pixels is not None:
            work.outcome.set_result(pixels)
        elif error is not None:
            work.outcome.set_exception(error)

    def _charge(self, work: W, seconds: float) -> None:
        """It has taken `seconds` of decoding. Beyond the estimate they count; within it the estimate has counted."""
        if seconds > work.seconds:
            self._queue.charge(work.batch, seconds - work.seconds)
            work.seconds = seconds

    def _look_for_hangs(self) -> None:
        """Find what is over its time limit, and come back when the next one may be."""
        now = self._clock()
        for work in list(self._begun()):
            if now - work.began >= self._timeout_seconds:
                self._charge(work, now - work.began)
                self._has_hung(work)
        self._timer = None
        # The queue first: what a thread takes between the two looks is then begun.
        waiting = len(self._queue)
        begun = [work.began for work in self._begun()]
        if begun or waiting:
            soonest = min(begun, default=now) + self._timeout_seconds
            self._timer = asyncio.get_running_loop().call_later(soonest - now, self._look_for_hangs)

    def _refuse_all(self, reason: str) -> None:
        while (work := self._queue.take()) is not None:
            fail(work, EngineUnavailable(reason, retry_after_seconds=5.0))

    def _stop_taking(self) -> None:
        """Refuse what waits and what comes."""
        self._refusal = _CLOSED
        self._refuse_all(_CLOSED)
        if self._timer is not None:
            self._timer.cancel()


def fail(work: Work, error: ServiceError) -> None:
    """Tell its caller, who may have been told already."""
    if not work.outcome.done():
        work.outcome.set_exception(error)


def _is_late(work: Work) -> None:
    fail(work, DeadlineExceeded())
