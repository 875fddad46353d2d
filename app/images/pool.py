"""The bounded pool of decode threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..errors import DeadlineExceeded, Overloaded

T = TypeVar("T")


class DecodePool:
    """Runs `threads` blocking calls at once and holds at most `max_waiting` more.

    Threads and not processes: Pillow releases the interpreter lock while it decodes and resizes. What waits is held
    here and not in the executor, so that a caller that leaves takes its work with it before it begins.
    """

    def __init__(self, threads: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.threads = threads
        self.max_waiting = max_waiting
        self._clock = clock
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._slots = asyncio.Semaphore(threads)
        self.waiting = 0

    async def run(self, call: Callable[[], T], deadline: float) -> T:
        """`call()` on a thread of the pool.

        `deadline` is an absolute monotonic time. Raises `Overloaded` at once where too many wait, `DeadlineExceeded`
        where the deadline passes first, and whatever `call` raises. A call that has begun runs to its end and keeps
        its thread, also when its caller has left.
        """
        if self.waiting >= self.max_waiting and self._slots.locked():
            raise Overloaded(retry_after_seconds=1.0)
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                await self._slots.acquire()
        except TimeoutError:
            raise DeadlineExceeded() from None
        finally:
            self.waiting -= 1
        try:
            work = asyncio.get_running_loop().run_in_executor(self._executor, call)
        except BaseException:
            self._slots.release()
            raise
        # The slot is the thread's: it is free when the thread is, not when the caller loses patience.
        work.add_done_callback(lambda done: self._slots.release())
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                return await asyncio.shield(work)
        except TimeoutError:
            work.add_done_callback(_forget)
            raise DeadlineExceeded() from None
        except asyncio.CancelledError:
            work.add_done_callback(_forget)
            raise

    def close(self) -> None:
        """Let running calls end and start no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _forget(work: asyncio.Future[T]) -> None:
    """Retrieve the outcome nobody waits for, so that asyncio does not report it as lost."""
    if not work.cancelled():
        work.exception()
