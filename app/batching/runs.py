"""One batch from its start to everyone's answer: run, watched, and halved where it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, cast

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

    async def run(self, batch: Sequence[Waiting[Item, Result]]) -> None:
        """Every item's answer has a result or an error when this returns. Raises `DeviceLost` where no more can run."""
        parts = [list(batch)]
        try:
            while parts:
                part = parts.pop()
                if len(part) < len(batch):
                    part = [waiting for waiting in part if self._is_wanted(waiting)]
                if part:
                    parts.extend(await self._run_part(part))
        except DeviceLost:
            for waiting in batch:
                _fail(waiting, EngineUnavailable())
            raise

    async def _run_part(self, part: list[Waiting[Item, Result]]) -> list[list[Waiting[Item, Result]]]:
        """Run it; the halves that are left to run, first half last, where it failed."""
        started_at = self._clock()
        try:
            results = await self._watched([waiting.item for waiting in part])
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

    async def _watched(self, items: list[Item]) -> Sequence[Result]:
        """The results. Raises `DeviceLost` where they do not come: the call is left behind, for nothing can end it."""
        call = asyncio.ensure_future(self._run_batch(items))
        seconds = self._hang_seconds(len(items))
        try:
            done, _ = await asyncio.wait({call}, timeout=None if seconds == float("inf") else seconds)
        except asyncio.CancelledError:
            call.add_done_callback(_forget)
            raise
        if not done:
            call.add_done_callback(_forget)
            self._events.batch_failed("hung", len(items))
            raise DeviceLost(f"A batch of {len(items)} has not come back for {seconds:.0f} seconds")
        return call.result()

    def _halves(self, part: list[Waiting[Item, Result]], error: Exception) -> list[list[Waiting[Item, Result]]]:
        if len(part) == 1:
            _fail(part[0], error)
            return []
        middle = len(part) // 2
        return [part[middle:], part[:middle]]


def _fail(waiting: Waiting[Item, Result], error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _forget(call: asyncio.Future[Sequence[Result]]) -> None:
    """Retrieve the outcome nobody waits for, so that asyncio does not report it as lost."""
    if not call.cancelled():
        call.exception()
