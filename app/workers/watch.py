"""Which processes stand still: they live, and their event loops do not turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from ..engine.board import Board
from .child import Child

LOOK_SECONDS = 0.5
# A native call that holds the interpreter lock, a process that was stopped. Nothing that serves takes so long for it,
# also where many share a CPU.
_STILL_SECONDS = 10.0


class Watch:
    """Compares the times at which processes last showed that they run with its own: `look` twice a second.

    Where its own process did not run either (the machine slept, the container was paused, there was no CPU to be had),
    nothing is known of the others, and their time begins anew.
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
        """What to say of a process that showed at `beat` for the last time that it runs, if that was too long ago."""
        if self._looked - max(beat, self._began) <= _STILL_SECONDS:
            return None
        return f"it stood still for {_STILL_SECONDS:.0f} seconds"


async def kill_what_stands_still(
    board: Board, engines: Callable[[], Sequence[tuple[Child, Board]]], front_ends: Mapping[int, Child]
) -> None:
    """Of those that serve: how long a start takes depends on too much. For ever.

    `board` has the front-ends' beats; `engines` gives each engine with its own board.
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
