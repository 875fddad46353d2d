"""One page that all processes of a service see: what the engine predicts, how many images each front-end holds, and
when each of them last showed that it runs.

Each cell is eight bytes and has one writer, so that every read is whole; what several cells say may be a moment apart,
which predictions can bear. Times are absolute CLOCK_MONOTONIC: a prediction ages by itself.
"""

from __future__ import annotations

import mmap
import os

import numpy as np

from .base import EngineState

MOST_FRONT_ENDS = 64
_STARTS_AT, _RUN_SECONDS, _CAPACITY, _BEAT = range(4)
_ENGINE_CELLS = 8


def create_board() -> int:
    """The descriptor of a new board; the caller closes it. Linux only."""
    descriptor = os.memfd_create("resnet-board", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, mmap.PAGESIZE)
    return descriptor


class Board:
    """The board behind `descriptor`, mapped."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's."""
        memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._engine = np.ndarray((_ENGINE_CELLS,), np.float64, memory)
        self._held = np.ndarray((MOST_FRONT_ENDS,), np.int64, memory, self._engine.nbytes)
        self._beats = np.ndarray((MOST_FRONT_ENDS,), np.float64, memory, self._engine.nbytes + self._held.nbytes)

    def publish(self, state: EngineState, now: float) -> None:
        """By the engine alone, often: it also says that the engine runs."""
        waits = state.predicted_wait_seconds > 0
        self._engine[_STARTS_AT] = now + state.predicted_wait_seconds if waits else 0.0
        self._engine[_RUN_SECONDS] = state.predicted_run_seconds
        self._engine[_CAPACITY] = state.capacity
        self._engine[_BEAT] = now

    def state(self, reason: str | None, now: float) -> EngineState:
        """As published last; `reason` is the reader's own to know."""
        return EngineState(
            reason is None,
            reason,
            max(0.0, float(self._engine[_STARTS_AT]) - now),
            float(self._engine[_RUN_SECONDS]),
            int(self._engine[_CAPACITY]),
        )

    def hold(self, front_end: int, images: int) -> None:
        """By that front-end alone, or by who buries it."""
        self._held[front_end] = images

    def beat(self, front_end: int, now: float) -> None:
        """By that front-end alone, often: it runs."""
        self._beats[front_end] = now

    @property
    def engine_beat(self) -> float:
        """When the engine published last."""
        return float(self._engine[_BEAT])

    def front_end_beat(self, front_end: int) -> float:
        return float(self._beats[front_end])

    def held(self) -> int:
        """Images from their last byte to their answer, over all front-ends."""
        return int(self._held.sum())
