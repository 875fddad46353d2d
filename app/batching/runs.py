"""One run of a batch: started, watched for a hang, and split in halves where it fails."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from ..errors import DeviceLost, EngineUnavailable, Internal, OutOfMemory
from .cap import BatchCap
from .queue import Batched, Waiting

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Events:
    """What a batcher tells whoever counts; this one counts nothing."""

    def dropped(self, reason: str) -> None:
        """An item left before the device saw it: "client_gone", "deadline" or "overloaded"."""

    def batch_failed(self, kind: str, batch_size: int) -> None:
        """ "raised", "wrong_count", "out_of_memory" or "hung"."""

    def lost(self, error: DeviceLost) -> None:
        """The device is beyond repair."""


class _Started(NamedTuple, Generic[Result]):
    """A batch, or a part of one, that runs."""

    at: float
    call: asyncio.Future[Sequence[Result]]


class BatchRunner(Generic[Item, Result]):
    """Runs batches, and settles the answer of every item in them."""

    def __init__(
        self,
        run_batch: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        cap: BatchCap,
        hang_seconds: Callable[[int], float],
        is_wanted: Callable[[Waiting[Item, Result]], bool],
        observe: Callable[[int, float], None],
        clock: Callable[[], float],
        events: Events,
    ) -> None:
        """`is_wanted` is asked of each item before a part of a failed batch runs again.

        `observe` is told the size and the seconds of what ran well.
        """
        self._run_batch = run_batch
        self._cap = cap
        self._observe = observe
        self._hang_seconds = hang_seconds
        self._is_wanted = is_wanted
        self._clock = clock
        self._events = events

    def run(self, batch: Sequence[Waiting[Item, Result]]) -> Coroutine[Any, Any, None]:
        """Start a batch, now; what is returned ends when every item's answer has a result or an error.

        That raises `DeviceLost` where no more can run.
        """
        return self._run(batch, self._start(batch))

    async def _run(self, batch: Sequence[Waiting[Item, Result]], started: _Started[Result]) -> None:
        try:
            parts = await self._end_part(list(batch), started)
            while parts:
                part = [waiting for waiting in parts.pop() if self._is_wanted(waiting)]
                if part:
                    parts.extend(await self._end_part(part, self._start(part)))
        except DeviceLost:
            for waiting in batch:
                _fail(waiting, EngineUnavailable())
            raise

    def _start(self, part: Sequence[Waiting[Item, Result]]) -> _Started[Result]:
        return _Started(self._clock(), asyncio.ensure_future(self._run_batch([waiting.item for waiting in part])))

    async def _end_part(
        self, part: list[Waiting[Item, Result]], started: _Started[Result]
    ) -> list[list[Waiting[Item, Result]]]:
        """Answer a part that has been started; the halves that are left to run, first half last, where it failed."""
        started_at = started.at
        try:
            results = await self._watched(started.call, len(part))
            if len(results) != len(part):
                logger.error("A batch of %d came back with %d results.", len(part), len(results))
                self._events.batch_failed("wrong_count", len(part))
                raise Internal()
        except DeviceLost:
            raise
        except OutOfMemory as error:
            self._events.batch_failed("out_of_memory", len(part))
            self._cap.ran_out_of_memory(len(part))
            return self._halves(part, error)
        except Exception as error:
            if not isinstance(error, Internal):
                logger.exception("A batch of %d failed unexpectedly.", len(part))
            self._events.batch_failed("raised", len(part))
            return self._halves(part, error)
        seconds = self._clock() - started_at
        self._observe(len(part), seconds)
        self._cap.ran_well(len(part))
        for waiting, result in zip(part, results, strict=True):
            # Its answer can be on its way before this batch is put away: the pixels go first.
            waiting.item = cast("Item", None)
            if not waiting.answer.done():
                waiting.answer.set_result(Batched(result, len(part), started_at - waiting.enqueued_at, seconds))
        return []

    async def _watched(self, call: asyncio.Future[Sequence[Result]], size: int) -> Sequence[Result]:
        """The results. Raises `DeviceLost` where they do not come: the call is left behind, for nothing can end it."""
        seconds = self._hang_seconds(size)
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds) as limit:
                return await call
        except TimeoutError:
            if not limit.expired():
                raise
            self._events.batch_failed("hung", size)
            raise DeviceLost(f"A batch of {size} has not come back for {seconds:.0f} seconds") from None

    def _halves(self, part: list[Waiting[Item, Result]], error: Exception) -> list[list[Waiting[Item, Result]]]:
        if len(part) == 1:
            # Without its frames, which hold the batch, and through its answer the error itself: whatever is news in
            # them has been logged.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            _fail(part[0], error)
            return []
        middle = len(part) // 2
        return [part[middle:], part[:middle]]


def _fail(waiting: Waiting[Item, Result], error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
