"""A queue shared fairly between requests: a batch of large images does not delay a single photo.

Two classes take turns, single images and batches, and among the batches their requests do. The next turn goes
to the one with less decoding time so far; idle time is not credited (start-time fair queueing: Goyal, Vin and Cheng,
1996). A single image waits for the images that are being decoded and for other single ones. Decoding time beyond the
estimate is charged too, so that a header that understates the cost has no effect.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What the queue has to know of an image."""

    @property
    def batch(self) -> Hashable | None:
        """The request, where it carries several images."""
        ...

    @property
    def seconds(self) -> float:
        """How long its decoding is expected to take."""
        ...


W = TypeVar("W", bound=Queued)


class _Flow(Generic[W]):
    """Images that are served first come, first served."""

    def __init__(self, served_to: float) -> None:
        self.works: OrderedDict[W, None] = OrderedDict()
        self.seconds = 0.0
        """Of decoding that waits here."""
        self.served_to = served_to
        """Virtual time at which the flow may be served again."""

    def put(self, work: W) -> None:
        self.works[work] = None
        self.seconds += work.seconds

    def discard(self, work: W) -> bool:
        if work not in self.works:
            return False
        del self.works[work]
        # A sum of floats that were added and taken away again may be a hair off.
        self.seconds = max(0.0, self.seconds - work.seconds) if self.works else 0.0
        return True


class FairQueue(Generic[W]):
    """Filled on one thread, emptied by several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._singles: _Flow[W] = _Flow(0.0)
        self._batches: OrderedDict[Hashable, _Flow[W]] = OrderedDict()
        self._batches_served_to = 0.0
        # Virtual times: when the work began that was taken last, of all and among the batches.
        self._now = 0.0
        self._batches_now = 0.0

    def __len__(self) -> int:
        with self._lock:
            return len(self._singles.works) + sum(len(flow.works) for flow in self._batches.values())

    def put(self, work: W) -> None:
        with self._lock:
            self._flow_of(work).put(work)

    def put_back(self, work: W) -> None:
        """As `put`, before all others of its flow: it had been taken."""
        with self._lock:
            flow = self._flow_of(work)
            flow.put(work)
            flow.works.move_to_end(work, last=False)

    def discard(self, work: W) -> None:
        """Take it out, if it is still there."""
        with self._lock:
            if work.batch is None:
                self._singles.discard(work)
            elif (flow := self._batches.get(work.batch)) is not None:
                flow.discard(work)
                self._drop_if_empty(work.batch, flow)

    def take(self, begin: Callable[[W], None] = lambda work: None) -> W | None:
        """The next one, or None. `begin` is called with it in the same step, before another thread sees the queue."""
        with self._lock:
            work = self._next()
            if work is not None:
                begin(work)
            return work

    def peek_seconds(self) -> float | None:
        """How long the next one is expected to take; None where there is none."""
        with self._lock:
            flow = self._next_flow()
            return next(iter(flow.works)).seconds if flow is not None else None

    def charge(self, batch: Hashable | None, seconds: float) -> None:
        """An image that was taken needed `seconds` more of decoding than was expected of it."""
        with self._lock:
            if batch is None:
                self._singles.served_to += seconds
                return
            self._batches_served_to += seconds
            if (flow := self._batches.get(batch)) is not None:
                flow.served_to += seconds

    def seconds_before(self, batch: Hashable | None, seconds: float) -> float:
        """Decoding that would go before an image that came now and takes `seconds`."""
        with self._lock:
            singles = self._singles.seconds
            waiting = [flow.seconds for key, flow in self._batches.items() if key != batch]
            if batch is None:
                return singles + min(singles, sum(waiting))
            own = self._batches[batch].seconds if batch in self._batches else 0.0
            batches = own + sum(min(each, own + seconds) for each in waiting)
            return batches + min(singles, batches + seconds)

    def _flow_of(self, work: W) -> _Flow[W]:
        if work.batch is None:
            return self._singles
        if work.batch not in self._batches:
            # As if it had just had an image like this one: new requests without end would else keep the others waiting.
            self._batches[work.batch] = _Flow(self._batches_now + work.seconds)
        return self._batches[work.batch]

    def _drop_if_empty(self, batch: Hashable, flow: _Flow[W]) -> None:
        if not flow.works:
            del self._batches[batch]

    def _next_flow(self) -> _Flow[W] | None:
        if self._singles.works and (
            not self._batches or max(self._now, self._singles.served_to) <= max(self._now, self._batches_served_to)
        ):
            return self._singles
        return min(self._batches.values(), key=lambda flow: flow.served_to, default=None)

    def _next(self) -> W | None:
        flow = self._next_flow()
        if flow is None:
            return None
        work = next(iter(flow.works))
        flow.discard(work)
        if flow is self._singles:
            self._now = max(self._now, flow.served_to)
            flow.served_to = self._now + work.seconds
        else:
            self._now = max(self._now, self._batches_served_to)
            self._batches_served_to = self._now + work.seconds
            self._batches_now = max(self._batches_now, flow.served_to)
            flow.served_to = self._batches_now + work.seconds
            assert work.batch is not None
            self._drop_if_empty(work.batch, flow)
        return work
