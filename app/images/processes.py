"""Decoding in processes of their own: what hangs is killed, and what crashes takes nobody along."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

from ..errors import EngineUnavailable, ImageCorrupt, ImageTooComplex, Internal, ServiceError
from ..types import DecodeMode, Pixels, Preprocessing
from .base import Observe, too_slow
from .decode import DecodeLimits, image_format
from .slots import Slots, SlottedDecoder
from .worker_process import WorkerDied, WorkerProcess, WorkerProcesses, describe_status

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long a decode that nobody waits for may go on: about what a new process costs. To kill one for each client that
# leaves would make clients who only leave dearer than those who stay.
_GRACE_SECONDS = 0.25
_START_SECONDS = 120.0
# Sent by whoever runs the machine, or by the kernel where memory ran out; no image does it.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class ProcessDecoder(SlottedDecoder):
    """A `Decoder` of long-lived processes, one for each slot, each held to the memory of one image.

    A process is killed when its image is over the time limit or its caller has left, and replaced before its slot is
    given to the next image. One that crashes is replaced likewise, and its image is `ImageCorrupt`.
    """

    def __init__(
        self,
        limits: DecodeLimits,
        *,
        slots: int,
        memory_bytes: int,
        max_waiting: int,
        timeout_seconds: float,
        mode: DecodeMode = "exact",
        observe: Observe = lambda image_format, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory_bytes` is what one image may take, its file and its pixels together."""
        super().__init__(slots, Slots(slots, max_waiting, clock))
        self._timeout_seconds = timeout_seconds
        self._observe = observe
        self._clock = clock
        self._processes = WorkerProcesses(limits, mode, memory_bytes, timeout_seconds)
        self._idle: list[WorkerProcess] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def process_ids(self) -> list[int]:
        """Of the processes that live."""
        return [worker.id for worker in self._processes.living()]

    async def start(self) -> None:
        """Start a process for each slot. Raises `EngineUnavailable` where one does not start."""
        deadline = self._clock() + _START_SECONDS
        await asyncio.gather(*[self._slots.run(self._begin_start, deadline) for _ in range(self.slots)])

    async def decode(self, data: bytes, preprocessing: Preprocessing, deadline: float) -> Pixels:
        """As `Decoder` says. `EngineUnavailable` also where no process can be started, or it was killed by others."""
        return await self._slots.run(
            lambda outcome: self._in_background(self._serve(data, preprocessing, outcome), outcome), deadline
        )

    async def close(self) -> None:
        """Refuse what waits, kill what runs, and return once no process is left."""
        self._slots.close()
        self._processes.kill_all()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self._processes.wait_for_all)

    def _begin_start(self, outcome: asyncio.Future[None]) -> None:
        self._in_background(self._prepare(outcome), outcome)

    def _in_background(self, work: Coroutine[object, object, None], outcome: asyncio.Future[T]) -> None:
        """`work`, which has a slot, as a task of its own: a caller that leaves must not end it halfway."""

        async def in_a_slot() -> None:
            try:
                await work
            except EngineUnavailable as error:
                _fail(outcome, error)
            except Exception:
                logger.exception("Decoding failed unexpectedly.")
                _fail(outcome, Internal())
            finally:
                self._slots.give_back()

        task = asyncio.get_running_loop().create_task(in_a_slot())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, outcome: asyncio.Future[None]) -> None:
        self._idle.append(await self._take_process())
        if not outcome.done():
            outcome.set_result(None)

    async def _serve(self, data: bytes, preprocessing: Preprocessing, outcome: asyncio.Future[Pixels]) -> None:
        worker = await self._take_process()
        if outcome.done() or await self._decode(worker, data, preprocessing, outcome):
            self._idle.append(worker)
            return
        await asyncio.to_thread(self._processes.wait, worker)
        if not self._processes.is_closed:
            self._idle.append(await self._take_process())

    async def _take_process(self) -> WorkerProcess:
        """One that idles, else a new one. Raises `EngineUnavailable`."""
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive():
                return worker
            status = await asyncio.to_thread(self._processes.wait, worker)
            logger.warning("A decoding process ended while it was idle (%s).", describe_status(status))
        try:
            return await asyncio.to_thread(self._processes.start)
        except (OSError, WorkerDied) as error:
            if not self._processes.is_closed:
                logger.error("A decoding process could not be started: %s.", error)
            raise EngineUnavailable("No decoder could be started.", retry_after_seconds=5.0) from None

    async def _decode(
        self, worker: WorkerProcess, data: bytes, preprocessing: Preprocessing, outcome: asyncio.Future[Pixels]
    ) -> bool:
        """Settle `outcome`; whether the process can go on. If not, it was killed or is ending."""
        began = self._clock()
        exchange = asyncio.ensure_future(worker.exchange(data, preprocessing))
        await asyncio.wait({exchange, outcome}, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not exchange.done() and outcome.done():
            left = max(0.0, began + self._timeout_seconds - self._clock())
            await asyncio.wait({exchange}, timeout=min(left, _GRACE_SECONDS))
        if not exchange.done():
            worker.kill()
            _fail(outcome, ImageTooComplex(too_slow(self._timeout_seconds)))
            exchange.cancel()
            await asyncio.wait({exchange})
            self.lost += 1
            try:
                await asyncio.to_thread(self._processes.wait, worker)
            finally:
                self.lost -= 1
            return False
        try:
            pixels = exchange.result()
        except ServiceError as error:
            _fail(outcome, error)
            return True
        except WorkerDied:
            _fail(outcome, self._reason_of(await asyncio.to_thread(self._processes.wait, worker)))
            return False
        except Exception:
            # `WorkerGarbled`, or what sockets meet only on a machine in need: this conversation cannot go on.
            logger.exception("A decoding process could not be talked to, and is killed.")
            worker.kill()
            _fail(outcome, Internal())
            return False
        if not outcome.done():
            outcome.set_result(pixels)
        seconds = self._clock() - began
        self._slots.took(seconds)
        known = image_format(data)
        if known is not None:
            self._observe(known, seconds)
        return True

    def _reason_of(self, status: int) -> ServiceError:
        """What an exit in the middle of an image says of the image."""
        if not self._processes.is_closed:
            logger.warning("A decoding process ended in the middle of an image (%s).", describe_status(status))
        if status in _FROM_OUTSIDE:
            return EngineUnavailable("The image's decoder was stopped.", retry_after_seconds=1.0)
        if status == -signal.SIGALRM:  # its own last resort, where this process was too busy to end it
            return ImageTooComplex(too_slow(self._timeout_seconds))
        # A crash is a signal; any other status is a fault of ours.
        return ImageCorrupt() if status < 0 else Internal()


def _fail(outcome: asyncio.Future[T], error: ServiceError) -> None:
    if not outcome.done():
        outcome.set_exception(error)
