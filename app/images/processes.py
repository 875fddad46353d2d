"""Decoding in processes of their own: what hangs is killed, and what crashes takes nobody along."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import EngineUnavailable, ImageTooComplex, Internal, ServiceError
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe, too_slow
from .decode import DecodeLimits
from .exchange import PLACES
from .exits import describe_status, reason_of
from .queued import QueuedDecoder, Work, fail
from .worker_process import WorkerDied, WorkerProcess, WorkerProcesses

logger = logging.getLogger(__name__)

# How long a decode that nobody waits for may go on: about what a new process costs. To kill one for each client that
# leaves would make clients who only leave dearer than those who stay.
_GRACE_SECONDS = 0.25
# An image that takes longer is not handed to a process that is still busy.
_AHEAD_SECONDS = 0.02
# The largest file, where nobody says it.
_PLACE_BYTES = 64_000_000


class ProcessDecoder(QueuedDecoder["_Work"]):
    """A `Decoder` of long-lived processes, one for each slot, each held to the memory of one image.

    A process has the next image while it decodes one, so that it need not stand still until the event loop has its
    turn. It is killed when its image is over the time limit or the image's caller has left, and replaced. One that
    crashes is replaced likewise, and its image is `ImageCorrupt`; the next one, which had not begun, goes to another.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        *,
        slots: int,
        memory_bytes: int,
        place_bytes: int = _PLACE_BYTES,
        max_waiting: int,
        timeout_seconds: float,
        mode: DecodeMode = "exact",
        observe: Observe = lambda image_format, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory_bytes` is what one image may take, its file and its pixels together; `place_bytes` is the largest
        file.
        """
        super().__init__(slots, max_waiting, timeout_seconds, observe, clock, limits.most_megapixels)
        self._processes = WorkerProcesses(limits, mode, memory_bytes, place_bytes, timeout_seconds)
        # Those that take images, with those that they have: the first one is being decoded.
        self._has: dict[WorkerProcess, deque[_Work]] = {}
        # Processes that are on their way: being started, or being waited for to be replaced.
        self._coming = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that live."""
        return [worker.id for worker in self._processes.living()]

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
        self._coming += self.slots
        await asyncio.gather(*[self._start_one() for _ in range(self.slots)])

    async def decode(
        self, data: bytes, preprocessing: Preprocessing, deadline: float, batch: Hashable | None = None
    ) -> Pixels:
        """As `Decoder` says. `EngineUnavailable` also where no process can be started, or it was killed by others."""
        outcome: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
        return await self._run(_Work(data, preprocessing, outcome, *self._work_of(data, batch)), deadline)

    async def close(self) -> None:
        """Refuse what waits, kill what runs, and return once no process is left."""
        self._stop_taking()
        self._processes.kill_all()
        for worker in list(self._has):
            self._part_with(worker)
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._processes.wait_for_all)

    # --- images go out

    def _begin(self) -> None:
        for already in range(PLACES):
            for worker, works in list(self._has.items()):
                if already == 0 and not works and not len(self._queue):
                    self._take_over()
                while len(works) == already and worker in self._has and self._may_hand_over(works):
                    self._hand_over(worker, works)
        missing = self.slots - len(self._has) - self._coming
        for _ in range(missing if len(self._queue) else 0):
            self._coming += 1
            self._in_background(self._start_another())

    def _may_hand_over(self, works: deque[_Work]) -> bool:
        """Whether the next of the queue can go to a process that has `works`.

        Behind or before a large image none is handed over in advance: one that is cheaper may come until its turn.
        """
        seconds = self._queue.peek_seconds()
        if seconds is None:
            return False
        return not works or max(seconds, works[0].seconds) <= _AHEAD_SECONDS

    def _hand_over(self, worker: WorkerProcess, works: deque[_Work]) -> None:
        """The next of the queue, unless that comes to nothing."""
        work = self._queue.take()
        if work is None or work.outcome.done():
            return  # its caller is leaving
        try:
            work.place = worker.ask(work.data, work.preprocessing)
        except ServiceError as error:
            fail(work, error)
            return
        except OSError:
            # It has ended while it was idle, and nobody has told us yet.
            self._put_back([work])
            self._part_with(worker)
            return
        work.worker = worker
        works.append(work)
        if len(works) == 1:
            work.began = self._clock()

    def _take_over(self) -> None:
        """Of what a process has and has not begun, into the queue: one with nothing to do is there for it.

        Its image may hang. If the process begins it all the same, who is first to answer is heard.
        """
        for worker, works in self._has.items():
            for number, work in enumerate(works):
                if number and not work.outcome.done():
                    worker.forget(work.place)
                    works[number] = work.without_caller()
                    self._put_back([work])
                    return

    def _put_back(self, works: Iterable[_Work]) -> None:
        """To the head of the queue: they have waited for longest."""
        for work in reversed(list(works)):
            if not work.outcome.done():
                work.worker = None
                self._queue.put_back(work)

    def _begun(self) -> Iterable[_Work]:
        return [works[0] for works in self._has.values() if works]

    # --- answers come back

    def _on_answers(self, worker: WorkerProcess) -> None:
        works = self._has[worker]
        try:
            for answer in worker.answers():
                work = works.popleft()
                now = self._clock()
                self._settle(work, answer.pixels, answer.error, now - work.began)
                if works:
                    works[0].began = now
                    if works[0].outcome.done():
                        self._let_go(works[0])
        except WorkerDied:
            self._part_with(worker)
        except Exception:
            # `WorkerGarbled`, or what sockets meet only on a machine in need: this conversation cannot go on.
            logger.exception("A decoding process could not be talked to, and is killed.")
            worker.kill()
            if works:
                fail(works[0], Internal())
            self._part_with(worker)
        self._begin()

    # --- what is not waited for, or for too long

    def _has_left(self, work: _Work) -> None:
        works = self._has.get(work.worker) if work.worker is not None else None
        if not works or work not in works:
            return
        if work is works[0]:
            self._let_go(work)
        else:
            work.worker.forget(work.place)  # type: ignore[union-attr]

    def _let_go(self, work: _Work) -> None:
        """It is being decoded, for nobody."""
        asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._kill_if_at, work)

    def _kill_if_at(self, work: _Work) -> None:
        works = self._has.get(work.worker) if work.worker is not None else None
        if works and works[0] is work:
            self._kill(work)

    def _has_hung(self, work: _Work) -> None:
        self._kill(work)

    def _kill(self, work: _Work) -> None:
        worker = work.worker
        assert worker is not None
        worker.kill()
        fail(work, ImageTooComplex(too_slow(self._timeout_seconds)))
        self._part_with(worker, is_lost=True)

    # --- processes come and go

    def _part_with(self, worker: WorkerProcess, *, is_lost: bool = False) -> None:
        """It has ended, or will have in a moment: what it has not begun is another's, and another has its slot."""
        works = self._has.pop(worker)
        asyncio.get_running_loop().remove_reader(worker.fileno())
        at = works.popleft() if works else None
        if self._refusal:
            for work in works:
                fail(work, EngineUnavailable(self._refusal, retry_after_seconds=5.0))
        else:
            self._put_back(works)
        self._coming += 1
        self.lost += is_lost
        self._in_background(self._bury(worker, at, is_lost))

    async def _bury(self, worker: WorkerProcess, at: _Work | None, is_lost: bool) -> None:
        """Wait for its end, which says what its image is told, and start another one."""
        try:
            status = await asyncio.to_thread(self._processes.wait, worker)
        finally:
            self.lost -= is_lost
        if at is not None and not at.outcome.done():
            if not self._processes.is_closed:
                logger.warning("A decoding process ended in the middle of an image (%s).", describe_status(status))
            fail(at, reason_of(status, self._timeout_seconds))
        elif at is None and not self._processes.is_closed:
            logger.warning("A decoding process ended while it was idle (%s).", describe_status(status))
        await self._start_another()

    async def _start_another(self) -> None:
        """Instead of one that has ended. Where none is to be had nobody waits for one; the next image asks again."""
        try:
            await self._start_one()
        except EngineUnavailable as error:
            if not self._has and not self._coming:
                self._refuse_all(error.detail)

    async def _start_one(self) -> None:
        try:
            if self._processes.is_closed:
                raise WorkerDied
            worker = await asyncio.to_thread(self._processes.start)
        except (OSError, WorkerDied) as error:
            if not self._processes.is_closed:
                logger.error("A decoding process could not be started: %s.", error)
            raise EngineUnavailable("No decoder could be started.", retry_after_seconds=5.0) from None
        finally:
            self._coming -= 1
        if self._processes.is_closed:
            return  # it has been killed, and is waited for
        self._has[worker] = deque()
        asyncio.get_running_loop().add_reader(worker.fileno(), self._on_answers, worker)
        self._begin()

    def _in_background(self, work: Coroutine[object, object, None]) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                logger.exception("Keeping decoding processes failed unexpectedly.")

        task = asyncio.get_running_loop().create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(slots=True, eq=False, kw_only=True)
class _Work(Work):
    worker: WorkerProcess | None = None
    """Who has it …"""
    place: int = 0
    """… and where."""

    def without_caller(self) -> _Work:
        """What a process still has when its caller waits for another one."""
        nobody = self.outcome.get_loop().create_future()
        nobody.cancel()
        return _Work(b"", self.preprocessing, nobody, self.cost, self.seconds, worker=self.worker, place=self.place)
