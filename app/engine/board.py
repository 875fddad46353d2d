"""One page that all processes of a service see: what the device does, how many reservations each front-end holds, and
when each of them last showed that it runs.

Each cell is eight bytes and has one writer, so that every read is whole; what several cells say may be a moment apart,
which predictions can bear. Times are absolute CLOCK_MONOTONIC: a prediction ages by itself.
"""

from __future__ import annotations

import math
import mmap

import numpy as np

from ..batching import DeviceForecast
from ..processes.shared_memory import create_shared_memory
from .base import EngineState

MOST_FRONT_ENDS = 64
_FREE_AT, _RUNNING, _SLOTS, _BATCH_SIZE, _BATCH_SECONDS, _SINGLE_SECONDS, _BEAT = range(7)
_ENGINE_CELLS = 7
# Of more images on the device at once, the rest are known by number alone.
_MOST_DEADLINES = 256


def create_board() -> int:
    """The descriptor of a new board; the caller closes it. Raises `OSError`."""
    return create_shared_memory("resnet-board", mmap.PAGESIZE)


class Board:
    """The board behind `descriptor`, mapped."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's."""
        memory = mmap.mmap(descriptor, mmap.PAGESIZE)
        self._engine = np.ndarray((_ENGINE_CELLS,), np.float64, memory)
        self._held = np.ndarray((MOST_FRONT_ENDS,), np.int64, memory, self._engine.nbytes)
        behind = self._engine.nbytes + self._held.nbytes
        self._beats = np.ndarray((MOST_FRONT_ENDS,), np.float64, memory, behind)
        self._deadlines = np.ndarray((_MOST_DEADLINES,), np.float64, memory, behind + self._beats.nbytes)

    def publish(self, state: EngineState, now: float) -> None:
        """By the engine alone, often: it also says that the engine runs."""
        device = state.device
        self._engine[_FREE_AT] = now + device.free_in_seconds
        known = device.running[:_MOST_DEADLINES]
        self._deadlines[: len(known)] = known
        self._engine[_RUNNING] = len(device.running)
        self._engine[_SLOTS] = device.slots
        self._engine[_BATCH_SIZE] = device.batch_size
        self._engine[_BATCH_SECONDS] = device.batch_seconds
        self._engine[_SINGLE_SECONDS] = device.single_seconds
        self._engine[_BEAT] = now

    def state(self, reason: str | None, now: float) -> EngineState:
        """As published last; `reason` is the reader's own to know."""
        free_at, running, slots, batch_size, batch_seconds, single_seconds, _ = self._engine.tolist()
        known: list[float] = self._deadlines[: int(running)].tolist()
        device = DeviceForecast(
            free_in_seconds=max(0.0, free_at - now),
            running=known + [-math.inf] * (int(running) - len(known)),
            # Before the engine has published anything, every cell is 0.
            slots=max(1, int(slots)),
            batch_size=max(1, int(batch_size)),
            batch_seconds=batch_seconds,
            single_seconds=single_seconds,
        )
        return EngineState(reason is None, reason, device)

    def hold(self, front_end: int, reservations: int) -> None:
        """By that front-end alone, or by the process that buries it."""
        self._held[front_end] = reservations

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
        """Reservations of all front-ends."""
        return int(self._held.sum())
