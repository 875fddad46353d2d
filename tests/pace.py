"""Bounds on how long something takes, counted in a time that stands still where the machine does other things."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TICK_SECONDS = 0.01


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes at most as many ticks as an idle machine has in `seconds`.

    A tick is a short wait of a thread of this process. A machine that is slow or has other work is as late with the
    ticks as it is with what is waited for, so that the result does not depend on its pace.
    """
    ended, ticks = threading.Event(), 0

    def count() -> None:
        nonlocal ticks
        while not ended.wait(_TICK_SECONDS):
            ticks += 1

    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    try:
        yield
    finally:
        ended.set()
        counting.join()
    assert ticks <= seconds / _TICK_SECONDS, f"{ticks * _TICK_SECONDS:.2f} s of ticks, more than {seconds} s"
