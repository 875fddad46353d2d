"""Finds processes that hang: they run, but their event loops do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from ..engine.board import Board
from .child import Child

LOOK_SECONDS = 0.5
# A native call may hold the interpreter lock, or the process was stopped. No process that serves takes this long
# otherwise, even if many share a CPU.
_STILL_SECONDS = 10.0


class Watch:
    """Compares processes' last signs of life with its own clock: call `look` twice a second.

    If its own process did not run either (the machine slept, the container was paused, no CPU was free), the others are
    not judged: their time begins anew.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = self._began = clock()

    def look(self) -> None:
        now = self._clock()
        if now - self._looked > 2 * LOOK_SECONDS:
            self._began = now
        self._looked = now

    def why_still(self, beat: float) -> str | None:
        """The reason to kill a process whose last sign of life was at `beat`; None if that is recent enough."""
        if self._looked - max(beat, self._began) <= _STILL_SECONDS:
            return None
        return f"it stood still for {_STILL_SECONDS:.0f} seconds"


async def kill_what_stands_still(
    board: Board, engines: Callable[[], Sequence[tuple[Child, Board]]], front_ends: Mapping[int, Child]
) -> None:
    """Kill serving processes that hang; for ever. Starting ones are left alone: their time depends on too much.

    `board` has the front-ends' beats; `engines` returns each engine with its own board.
    """
    watch = Watch()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        watch.look()
        serving = [(child, board.front_end_beat(number)) for number, child in front_ends.items() if child.is_up]
        serving += [(engine, own.engine_beat) for engine, own in engines()]
        for child, beat in serving:
            if (why := watch.why_still(beat)) is not None:
                child.kill(why)
