"""Parts of a file for a decoder; many small parts are joined only when they are read."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np


class Scattered:
    """What lies in a file between pairs of positions, as one piece."""

    def __init__(self, data: bytes, begins: Sequence[int], ends: Sequence[int]) -> None:
        self._data = data
        self._ends = ends
        self._until = array("q", accumulate(end - begin for begin, end in zip(begins, ends, strict=True)))

    def __len__(self) -> int:
        return self._until[-1]

    def __getitem__(self, part: slice) -> bytes:
        at, end, _ = part.indices(len(self))
        found: list[bytes] = []
        number = bisect_right(self._until, at)
        while at < end:
            until, file_end = self._until[number], self._ends[number]
            found.append(self._data[file_end - (until - at) : file_end - max(0, until - end)])
            at = until
            number += 1
        return b"".join(found)


class Strided:
    """`count` parts of `length` bytes in a file, `step` bytes apart, as one piece."""

    def __init__(self, data: bytes, begin: int, length: int, step: int, count: int) -> None:
        parts = np.ndarray((count, length), np.uint8, data, begin, (step, 1))
        self._parts = parts

    def __len__(self) -> int:
        return self._parts.size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(len(self))
        length = self._parts.shape[1]
        first = begin // length
        return self._parts[first : -(-end // length)].tobytes()[begin - first * length : end - first * length]


Piece = bytes | memoryview | Scattered | Strided
