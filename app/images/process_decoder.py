"""Decoding in child processes: one that hangs is killed, and one that crashes fails its own image only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from ..errors import EngineUnavailable, ImageTooComplex, Internal, ServiceError
from ..processes.children import describe_status
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe, too_slow
from .decode import DecodeLimits
from .decoding_child import ChildEnded, DecodingChild
from .decoding_children import DecodingChildren, Replacements
from .exchange import BUFFERS
from .exits import reason_of
from .queued import QueuedDecoder, Work, fail

logger = logging.getLogger(__name__)

# How long the decode of an abandoned image may go on: about the cost of a new process. Without it, clients that only
# disconnect would cost more than those that stay.
_GRACE_SECONDS = 0.25
# An image that is expected to take longer is not handed to a busy process.
_AHEAD_SECONDS = 0.02
# The largest file by default.
_BUFFER_BYTES = 64_000_000


class ProcessDecoder(QueuedDecoder["_Work"]):
    """A `Decoder` of long-lived processes, one for each slot, each limited to the memory of one image.

    A process holds the next image while it decodes one, so that it need not wait for the event loop in between. It is
    killed and replaced when its image is over the time limit or the image's caller has left. One that crashes is
    replaced too, and its image is `ImageCorrupt`; the next one, which had not begun, goes to another process.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        *,
        slots: int,
        memory_bytes: int,
        buffer_bytes: int = _BUFFER_BYTES,
        max_waiting: int,
        timeout_seconds: float,
        mode: DecodeMode = "exact",
        observe: Observe = lambda image_format, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory_bytes` is the memory of one image, its file and its pixels together; `buffer_bytes` is the size of
        the largest file.
        """
        super().__init__(slots, max_waiting, timeout_seconds, observe, clock, limits.most_megapixels)
        self._processes = DecodingChildren(limits, mode, memory_bytes, buffer_bytes, timeout_seconds)
        self._replacements = Replacements(self._processes, self._has_started, self._has_not_started)
        # The processes that take images, with the images that each holds: the first one is being decoded.
        self._has: dict[DecodingChild, deque[_Work]] = {}

    @property
    def process_ids(self) -> list[int]:
        """Of the living processes."""
        return [child.id for child in self._processes.living()]

    @property
    def waiting(self) -> int:
        not_begun = [work for works in self._has.values() for work in list(works)[1:]]
        return len(self._queue) + sum(not work.outcome.done() for work in not_begun)

    @property
    def stuck_seconds(self) -> float:
        """A process that hangs is killed."""
        return 0.0

    async def start(self) -> None:
        """Start a process for each slot. Raises `EngineUnavailable` where one does not start."""
        await self._replacements.start(self.slots)

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, deadline: float, batch: Hashable | None = None
    ) -> Pixels:
        """As `Decoder` says. `EngineUnavailable` also where no process starts, or it was killed from outside."""
        outcome: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
        return await self._run(_Work(data, preprocessing, outcome, *self._work_of(data, batch)), deadline)

    async def close(self) -> None:
        """Refuse waiting images, kill all processes, and return once none is left."""
        self._stop_taking()
        self._processes.kill_all()
        for child in list(self._has):
            self._part_with(child)
        await self._replacements.finish()
        await asyncio.to_thread(self._processes.wait_for_all)

    # --- images go out

    def _begin(self) -> None:
        for already in range(BUFFERS):
            for child, works in list(self._has.items()):
                if already == 0 and not works and not len(self._queue):
                    self._take_over()
                while len(works) == already and child in self._has and self._may_hand_over(works):
                    self._hand_over(child, works)
        if len(self._queue):
            self._replacements.start_in_background(self.slots - len(self._has) - self._replacements.coming)

    def _may_hand_over(self, works: deque[_Work]) -> bool:
        """Whether the next of the queue can go to a process that holds `works`.

        None is handed over in advance behind or before a large image: a cheaper one may arrive until its turn.
        """
        seconds = self._queue.peek_seconds()
        if seconds is None:
            return False
        return not works or max(seconds, works[0].seconds) <= _AHEAD_SECONDS

    def _hand_over(self, child: DecodingChild, works: deque[_Work]) -> None:
        """Give it the next of the queue, if that is still wanted."""
        work = self._queue.take()
        if work is None or work.outcome.done():
            return  # its caller is leaving
        try:
            work.buffer = child.ask(work.data, work.preprocessing)
        except ServiceError as error:
            fail(work, error)
            return
        except OSError:
            # It has ended while it was idle, and this is the first notice.
            self._put_back([work])
            self._part_with(child)
            return
        work.child = child
        works.append(work)
        if len(works) == 1:
            work.began = self._clock()

    def _take_over(self) -> None:
        """Put an image that a process holds and has not begun back into the queue, for an idle process.

        The image before it may hang. If its process begins it all the same, the first answer counts.
        """
        for child, works in self._has.items():
            for number, work in enumerate(works):
                if number and not work.outcome.done():
                    child.forget(work.buffer)
                    works[number] = work.without_caller()
                    self._put_back([work])
                    return

    def _put_back(self, works: Iterable[_Work]) -> None:
        """To the head of the queue: they have waited longest."""
        for work in reversed(list(works)):
            if not work.outcome.done():
                work.child = None
                self._queue.put_back(work)

    def _begun(self) -> Iterable[_Work]:
        return [works[0] for works in self._has.values() if works]

    # --- answers come back

    def _on_answers(self, child: DecodingChild) -> None:
        works = self._has[child]
        try:
            for answer in child.answers():
                work = works.popleft()
                now = self._clock()
                self._settle(work, answer.pixels, answer.error, now - work.began)
                if works:
                    works[0].began = now
                    if works[0].outcome.done():
                        self._let_go(works[0])
        except ChildEnded:
            self._part_with(child)
        except Exception:
            # `ChildGarbled`, or an error of the socket that only a machine short of resources meets.
            logger.exception("A decoding process could not be talked to, and is killed.")
            child.kill()
            if works:
                fail(works[0], Internal())
            self._part_with(child)
        self._begin()

    # --- images that are abandoned, or take too long

    def _has_left(self, work: _Work) -> None:
        child = work.child
        works = self._has.get(child) if child is not None else None
        if child is None or not works or work not in works:
            return
        if work is works[0]:
            self._let_go(work)
        else:
            child.forget(work.buffer)

    def _let_go(self, work: _Work) -> None:
        """It is being decoded and no longer wanted."""
        asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._kill_if_at, work)

    def _kill_if_at(self, work: _Work) -> None:
        works = self._has.get(work.child) if work.child is not None else None
        if works and works[0] is work:
            self._kill(work)

    def _has_hung(self, work: _Work) -> None:
        self._kill(work)

    def _kill(self, work: _Work) -> None:
        assert work.child is not None
        work.child.kill()
        fail(work, ImageTooComplex(too_slow(self._timeout_seconds)))
        self._part_with(work.child, is_lost=True)

    # --- processes come and go

    def _has_started(self, child: DecodingChild) -> None:
        self._has[child] = deque()
        asyncio.get_running_loop().add_reader(child.fileno(), self._on_answers, child)
        self._begin()

    def _has_not_started(self, error: EngineUnavailable) -> None:
        """Where there is no process and none to come, nothing waits for one; the next image asks again."""
        if not self._has and not self._replacements.coming:
            self._refuse_all(error.detail)

    def _part_with(self, child: DecodingChild, *, is_lost: bool = False) -> None:
        """It has ended, or will in a moment: the images that it has not begun go to others, and it is replaced."""
        works = self._has.pop(child)
        asyncio.get_running_loop().remove_reader(child.fileno())
        at = works.popleft() if works else None
        if self._refusal:
            for work in works:
                fail(work, EngineUnavailable(self._refusal, retry_after_seconds=5.0))
        else:
            self._put_back(works)
        self.lost += is_lost

        def on_status(status: int) -> None:
            self.lost -= is_lost
            self._has_ended(status, at)

        self._replacements.replace(child, on_status)

    def _has_ended(self, status: int, at: _Work | None) -> None:
        """Its exit status decides the error of the image that it was at."""
        if at is not None and not at.outcome.done():
            if not self._processes.is_closed:
                logger.warning("A decoding process ended in the middle of an image (%s).", describe_status(status))
            fail(at, reason_of(status, self._timeout_seconds))
        elif at is None and not self._processes.is_closed:
            logger.warning("A decoding process ended while it was idle (%s).", describe_status(status))


@dataclass(slots=True, eq=False, kw_only=True)
class _Work(Work):
    child: DecodingChild | None = None
    """The process that holds it, …"""
    buffer: int = 0
    """… and where there."""

    def without_caller(self) -> _Work:
        """A stand-in for a process that still holds it when its caller waits for another process."""
        nobody = self.outcome.get_loop().create_future()
        nobody.cancel()
        return _Work(b"", self.preprocessing, nobody, self.cost, self.seconds, child=self.child, buffer=self.buffer)
