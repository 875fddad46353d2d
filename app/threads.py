"""Blocking calls on threads beside the event loop.

The threads are daemons: those of the standard library's executors are joined at the exit, and one that is stuck would
hold it. And an outcome takes one round of the loop to who awaits it, not the three of a future that is wrapped in
another; where threads compete for the interpreter's lock, each round costs more than what is done in it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

T = TypeVar("T")


class Threads:
    """A fixed number of threads that share one queue of calls, first come, first served."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True).start()

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """What `call` returns or raises. To cancel the future changes nothing for a call that has been handed over."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        self._calls.put(partial(_perform, call, loop, outcome))
        return outcome

    def stop(self) -> None:
        """Forget the calls that have not begun, and end each thread when it is free; nothing is waited for."""
        with suppress(Empty):
            while True:
                self._calls.get_nowait()
        for _ in range(self._count):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # and with it what it was given


async def in_a_thread(call: Callable[[], T], name: str) -> T:
    """`call()` on a thread of its own, which nothing waits for when the process ends."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    threading.Thread(target=_perform, args=(call, loop, outcome), name=name, daemon=True).start()
    return await outcome


def _perform(call: Callable[[], T], loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[T]) -> None:
    result: T | None = None
    error: BaseException | None = None
    try:
        result = call()
    except BaseException as raised:
        error = raised
    with suppress(RuntimeError):  # the loop is closed: nobody asks any more
        loop.call_soon_threadsafe(_settle, outcome, result, error)
    # An error holds this frame, and so would hold itself, with all that the call was given, until the next collection.
    del call, outcome, result, error


def _settle(outcome: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if outcome.done():
        return
    if error is None:
        outcome.set_result(cast("T", result))
    else:
        outcome.set_exception(error)
