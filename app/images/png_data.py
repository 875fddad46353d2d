"""The pixel data of a PNG in any number of chunks, read in place without an object for each chunk."""

from __future__ import annotations

from array import array

import numpy as np

from .pieces import Piece, Scattered, Strided

# From so many chunks of one kind and size in a row on, those behind them are looked at together, in windows that
# become larger.
MANY_OF_ONE_SIZE = 32
_HEAD_BYTES, AROUND_BYTES = 8, 12
_FIRST_WINDOW, _LAST_WINDOW = 64, 1 << 14
# Views cost a reader less, and the collector of garbage more.
_MOST_VIEWS = 1024


class PixelData:
    """The parts of a file that its pixels are made of, in their order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pieces: list[Piece] = []
        self._begins, self._ends = array("q"), array("q")

    def __bool__(self) -> bool:
        return bool(self._begins) or bool(self._pieces)

    def of_same_file(self) -> PixelData:
        """Others, of which nothing is there yet."""
        return PixelData(self._data)

    def add(self, begin: int, end: int) -> None:
        """What lies between the two, as far as the file goes."""
        self._begins.append(begin)
        self._ends.append(min(end, len(self._data)))

    def add_run(self, begin: int, length: int, end: int) -> None:
        """The bodies of chunks that all have `length` bytes, from the first body's begin to the last chunk's end."""
        step = length + AROUND_BYTES
        if length and end > begin:
            self._gather()
            self._pieces.append(Strided(self._data, begin, length, step, -(-(end - begin) // step)))

    def pieces(self) -> list[Piece]:
        if self._pieces or len(self._begins) > _MOST_VIEWS:
            self._gather()
            return list(self._pieces)
        view = memoryview(self._data)
        return [view[begin:end] for begin, end in zip(self._begins, self._ends, strict=True)]

    def _gather(self) -> None:
        """One piece of what was added since the last one."""
        if self._begins:
            self._pieces.append(Scattered(self._data, self._begins, self._ends))
            self._begins, self._ends = array("q"), array("q")


def past_equal_chunks(data: bytes, at: int, length: int) -> int:
    """The first chunk at or behind `at` that has not the kind and length of the one in front of it, which has
    `length`. None that is passed is cut off.
    """
    step = length + AROUND_BYTES
    head = np.frombuffer(data, np.uint8, _HEAD_BYTES, at - step)
    window = _FIRST_WINDOW
    while (count := min(window, (len(data) - at) // step)) > 0:
        heads = np.ndarray((count, _HEAD_BYTES), np.uint8, data, at, (step, 1))
        others = np.flatnonzero((heads != head).any(axis=1))
        if len(others):
            return at + int(others[0]) * step
        at += count * step
        window = min(2 * window, _LAST_WINDOW)
    return at
