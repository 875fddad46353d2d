"""The pixels of BMPs that Pillow does not read, or reads in Python: bit masks of any kind, and run lengths (RLE)."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageCorrupt, ImageTooComplex
from .geometry import Size

Masks = tuple[int, int, int, int]
"""The bits of red, green, blue and alpha in a pixel; 0 for no alpha."""

BGRX: Masks = (0xFF0000, 0xFF00, 0xFF, 0)
BGRA: Masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

# What is computed at a time, in pixels: some megabytes in between.
_STRIPE_PIXELS = 1 << 19
# Ends of rows, jumps and runs of single pixels, which are gone through one by one; runs of one colour are not. A row
# has one end, and a picture with more single pixels than this is smaller without runs.
MAX_ESCAPES = 1 << 18
_WINDOW_PAIRS = 1 << 18
_END_OF_ROW, _END, _JUMP = 0, 1, 2


def unmasked(pixels: memoryview, size: Size, depth: int, masks: Masks) -> tuple[memoryview, Masks]:
    """Pixels of 16 or 32 bits under `masks`, as 32 bits of blue, green, red and alpha, and the masks of these.

    Each channel is scaled to 8 bits, to the nearest; of more than 8 bits the upper 8 are taken. `pixels` are whole
    rows, of which the last one may lack what fills it up to four bytes.
    """
    width, height = size
    row_bytes = (width * depth + 31) // 32 * 4
    rows = max(1, _STRIPE_PIXELS // width)
    colours = np.zeros((height, width, 4), np.uint8)
    for top in range(0, height, rows):
        stripe = pixels[top * row_bytes : (top + rows) * row_bytes]
        count = min(rows, height - top)
        whole = bytes(stripe).ljust(count * row_bytes, b"\0")
        words = np.frombuffer(whole, "<u2" if depth == 16 else "<u4").reshape(count, -1)[:, :width]
        for channel, mask in zip((2, 1, 0, 3), masks, strict=True):
            if mask:
                colours[top : top + count, :, channel] = _levels(words, mask)
    return colours.data.cast("B"), BGRA if masks[3] else BGRX


def _levels(words: NDArray[np.uint16] | NDArray[np.uint32], mask: int) -> NDArray[np.uint8]:
    shift = (mask & -mask).bit_length() - 1
    bits = (mask >> shift).bit_length()
    levels = (words & words.dtype.type(mask)) >> words.dtype.type(shift)
    if bits >= 8:
        return (levels >> words.dtype.type(bits - 8)).astype(np.uint8)
    most = (1 << bits) - 1
    scale = np.array([(255 * level + most // 2) // most for level in range(most + 1)], np.uint8)
    return np.take(scale, levels)


def unpacked(data: memoryview, size: Size, palette: bytes, *, is_4_bit: bool) -> tuple[memoryview, memoryview | None]:
    """The palette's numbers of a picture in runs, in rows filled up to four bytes; where the runs pass over pixels, the
    colours instead, of which these are black.

    Raises `ImageCorrupt` where the runs end early, and `ImageTooComplex`.
    """
    runs = _Runs(data, size, is_4_bit)
    runs.unpack()
    if all(runs.painted.find(0, at, at + _STRIPE_PIXELS) < 0 for at in range(0, len(runs.painted), _STRIPE_PIXELS)):
        return memoryview(runs.indices), None
    width, height = size
    colours = np.frombuffer(palette.ljust(1024, b"\0"), np.uint8).reshape(256, 4).copy()
    made = np.zeros((height, width, 4), np.uint8)
    for row in range(height):
        begin = row * runs.row_bytes
        indices = np.frombuffer(runs.indices, np.uint8, width, begin)
        painted = np.frombuffer(runs.painted, np.uint8, width, begin)
        made[row] = colours[indices] * painted[:, None]
    return memoryview(runs.indices), made.data.cast("B")


class _Runs:
    """A picture in runs, while it is unpacked. All that it consists of begins at an even place: pairs of bytes."""

    def __init__(self, data: memoryview, size: Size, is_4_bit: bool) -> None:
        self._data = data[: len(data) // 2 * 2]
        self._pairs = np.frombuffer(self._data, np.uint8).reshape(-1, 2)
        self._width, self._height = size
        self._is_4_bit = is_4_bit
        self.row_bytes = (self._width + 3) // 4 * 4
        self.indices = bytearray(self.row_bytes * self._height)
        # What fills a row up counts as painted.
        filling = b"\1" * (self.row_bytes - self._width)
        self.painted = bytearray((bytes(self._width) + filling) * self._height)
        self._window = (0, 0)
        self._escapes: list[int] = []
        self._x = self._y = 0

    def unpack(self) -> None:
        at = 0
        for _ in range(MAX_ESCAPES):
            escape = self._next_escape(at)
            self._take_runs(at, escape)
            if self._y >= self._height or self._is_full():
                return
            if escape == len(self._pairs):
                raise ImageCorrupt()
            code, at = self._data[2 * escape + 1], escape + 1
            if code == _END:
                return
            if code == _END_OF_ROW:
                self._x, self._y = 0, self._y + 1
            elif code == _JUMP:
                if at == len(self._pairs):
                    raise ImageCorrupt()
                self._x, self._y = self._x + self._data[2 * at], self._y + self._data[2 * at + 1]
                at += 1
            else:
                at = self._take_single(at, code)
        raise ImageTooComplex(f"The image has over {MAX_ESCAPES:,} BMP runs, and this server reads no more.")

    def _is_full(self) -> bool:
        return self._y == self._height - 1 and self._x >= self._width

    def _next_escape(self, at: int) -> int:
        """The next pair that begins with 0."""
        begin, end = self._window
        while not begin <= at < end or (number := bisect_left(self._escapes, at)) == len(self._escapes):
            begin = at if not begin <= at < end else end
            if begin >= len(self._pairs):
                return len(self._pairs)
            end = begin + _WINDOW_PAIRS
            self._window = begin, end
            self._escapes = (np.flatnonzero(self._pairs[begin:end, 0] == 0) + begin).tolist()
            at = begin
        return self._escapes[number]

    def _take_runs(self, begin: int, end: int) -> None:
        """Runs of one colour, or of two that take turns; what reaches beyond the row is left out."""
        # Each is at least a pixel.
        end = min(end, begin + max(0, self._width - self._x))
        if begin >= end or self._y >= self._height:
            return
        counts, values = self._pairs[begin:end, 0], self._pairs[begin:end, 1]
        total = np.cumsum(counts, dtype=np.int64)
        used = int(np.searchsorted(total, self._width - self._x)) + 1
        counts, values, total = counts[:used], values[:used], total[:used]
        if not self._is_4_bit:
            self._paint(np.repeat(values, counts).tobytes())
            return
        odd = (np.arange(total[-1]) - np.repeat(total - counts, counts)) & 1
        self._paint(np.where(odd, np.repeat(values & 15, counts), np.repeat(values >> 4, counts)).tobytes())

    def _take_single(self, at: int, count: int) -> int:
        """`count` pixels one by one, in whole pairs of bytes; the pair behind them."""
        size = (count + 1) // 2 if self._is_4_bit else count
        begin, end = 2 * at, 2 * at + size
        if end > len(self._data):
            raise ImageCorrupt()
        pixels = bytes(self._data[begin:end])
        if self._is_4_bit:
            pixels = bytes(half for byte in pixels for half in (byte >> 4, byte & 15))[:count]
        if self._y < self._height:
            self._paint(pixels)
        return at + (size + 1) // 2

    def _paint(self, pixels: bytes) -> None:
        pixels = pixels[: max(0, self._width - self._x)]
        begin = self._y * self.row_bytes + self._x
        self.indices[begin : begin + len(pixels)] = pixels
        self.painted[begin : begin + len(pixels)] = b"\1" * len(pixels)
        self._x += len(pixels)
