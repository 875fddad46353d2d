"""The markers of a JPEG, found as libjpeg finds them, in bounded time and with short holds of the interpreter lock."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageTooComplex

SIGNATURE = b"\xff\xd8\xff"
SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
# Frames (ITU T.81, B.1.1.3): DHT, JPG and DAC, whose codes lie between theirs, are none.
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# A segment holds up to 64 kB, so that a file of 10 MB needs 160 of them; ICC profiles have 255 at the most. Segments
# of 4 bytes are millions, each of which costs a reader in Python microseconds.
MAX_SEGMENTS = 4096

# What is looked through at a time: a millisecond or two, and a whole photo for most clients.
_WINDOW_BYTES = 1 << 20
# A marker that libjpeg acts upon, found as its jdmarker.c finds it: behind any other bytes, which makes a scan's data
# such bytes too. There FF 00 is a level of 255, and RST0 to RST7 (D0 to D7) are no ends. Codes below C0 have no segment
# to skip: where libjpeg looks for a restart it goes on behind them, and elsewhere it gives the file up.
_MARKERS = frozenset([*range(0xC0, 0xD0), *range(0xD8, 0xFF)])
_IS_MARKER = np.zeros(256, np.bool_)
_IS_MARKER[[*_MARKERS]] = True
# What libjpeg gives a file up for when it meets it in or behind a scan's data, and `_IS_MARKER` passes over.
_IS_INVALID = np.zeros(256, np.bool_)
_IS_INVALID[0x02:0xC0] = True
# In a scan's data one byte of 256 or fewer is FF. Of fill bytes every one is, which places in a list are slow for.
_RARE = 32
_NONE_FOUND = np.empty(0, np.int64)
# As many fill bytes as no encoder writes: what is longer is left out, see `without_fill`.
_LONG_FILL = b"\xff" * 256
_FILL = re.compile(rb"\xff+")


class Segment(NamedTuple):
    """A marker with the segment behind it; SOI and EOI have none."""

    code: int
    begin: int
    """Of the marker: its FF. In front of it lies whatever is between it and the segment before."""
    body: int
    """Behind the segment's length."""
    end: int
    """May be behind the end of a file that was cut off."""


class MarkerSearch:
    """The markers of one file, looked for a window at a time."""

    def __init__(self, data: bytes) -> None:
        self._bytes = np.frombuffer(data, np.uint8)
        self._window = (0, 0)
        self._found: NDArray[np.int64] = _NONE_FOUND

    def next(self, at: int) -> int | None:
        """Where the first marker at or behind `at` begins."""
        begin, end = self._window
        if not begin <= at < end:
            end = at
        else:
            number = int(np.searchsorted(self._found, at))
            if number < len(self._found):
                return int(self._found[number])
        while end < len(self._bytes) - 1:
            self._window = (end, end + _WINDOW_BYTES)
            self._found = self._in_window(end, _IS_MARKER)
            if len(self._found):
                return int(self._found[0])
            end += _WINDOW_BYTES
        return None

    def has_invalid(self, begin: int, end: int) -> bool:
        """Whether a marker that libjpeg gives a file up for begins between the two."""
        for at in range(begin, end, _WINDOW_BYTES):
            found = self._in_window(at, _IS_INVALID)
            if len(found) and found[0] < end - 1:
                return True
        return False

    def _in_window(self, begin: int, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
        window = self._bytes[begin : begin + _WINDOW_BYTES + 1]
        is_found = window[:-1] == 0xFF
        if np.count_nonzero(is_found) > len(window) // _RARE:
            is_found &= np.take(wanted, window[1:])
            return np.flatnonzero(is_found) + begin
        found = np.flatnonzero(is_found)
        return found[wanted[window[found + 1]]] + begin


def segments(data: bytes) -> Iterator[Segment]:
    """The segments of the JPEG that `data` begins with, to its EOI or its end. Restarts are not among them.

    Raises `ImageTooComplex` for a file of over `MAX_SEGMENTS` of them.
    """
    search: MarkerSearch | None = None
    at = 2
    for _ in range(MAX_SEGMENTS):
        begin = at
        # Where a segment ends the next one begins, but behind a scan and in odd files.
        if not (at + 1 < len(data) and data[at] == 0xFF and data[at + 1] in _MARKERS):
            search = search or MarkerSearch(data)
            found = search.next(at)
            if found is None:
                return
            begin = found
        code, at = data[begin + 1], begin + 2
        if code == EOI:
            yield Segment(code, begin, at, at)
            return
        if code == SOI:
            yield Segment(code, begin, at, at)
            continue
        # The length counts its own two bytes; libjpeg takes a smaller one for these two.
        body, at = at + 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        yield Segment(code, begin, body, at)
    raise ImageTooComplex(f"The image has over {MAX_SEGMENTS:,} JPEG segments, and this server reads no more.")


def without_fill(data: bytes, begin: int) -> list[memoryview]:
    """`data` from `begin` on, without its long runs of FF: of fill bytes, one is enough.

    libjpeg reads a run again from its beginning with each part of a file that it gets.
    """
    view = memoryview(data)
    kept: list[memoryview] = []
    at = begin
    while at < len(data):
        found = data.find(_LONG_FILL, at, at + _WINDOW_BYTES + len(_LONG_FILL))
        if found < 0:
            at += _WINDOW_BYTES
            continue
        at = found
        while (run := _FILL.match(data, at, at + _WINDOW_BYTES)) is not None:
            at = run.end()
        kept.append(view[begin : found + 1])
        begin = at
    return [*kept, view[begin:]]
