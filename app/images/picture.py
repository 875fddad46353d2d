"""The essential parts of an image file, as a decoder gets them, and how its result is finished."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, cast

from ..errors import ImageTooLarge
from . import jpeg_end
from .geometry import Size
from .pieces import Piece

# A file of up to so many bytes is copied into one piece, which Pillow reads faster. No more: a copy holds the
# interpreter lock, and one of 64 MB does so for longer than other threads may wait.
_MOST_COPIED_BYTES = 1 << 20
# What a decoder gets at a time. To hand over a part holds the interpreter lock, and most files are one part: between
# two, the lock is waited for.
PART_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What is refused from an image's header and structure, before any pixel is decoded."""

    max_pixels_jpeg: int
    max_pixels: int
    max_side: int
    max_jpeg_scans: int = 64
    max_jpeg_megapixel_scans: float = 1_000.0
    """Millions of pixels times scans: a scan goes over every pixel again."""

    @property
    def most_megapixels(self) -> float:
        """Of any format."""
        return max(self.max_pixels_jpeg, self.max_pixels) / 1e6

    def check_size(self, size: Size, most: int) -> None:
        """Raises `ImageTooLarge` for a size of over `most` pixels or with a side over the limit."""
        width, height = size
        if width * height > most or max(width, height) > self.max_side:
            raise ImageTooLarge(
                f"The image is {width}×{height}; this server decodes up to {most / 1e6:g} megapixels of this format "
                f"and sides of up to {self.max_side} pixels."
            )


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a file, as a file of its own that has nothing else in it."""

    kind: str
    """"jpeg", "png", "webp", "gif" or "bmp"."""
    pieces: Sequence[Piece]
    """The file that a decoder gets, in parts that lie one behind the other."""
    size: Size
    """Of what is shown: of an animation, its canvas."""
    orientation: int = 1
    """By EXIF, 1 to 8."""
    scans: int = 0
    """Of a JPEG, as `count_scans` counts them."""
    scans_begin: int = 0
    """Of a JPEG, where its first scan begins in the client's file. The first piece is all that is in front of it."""
    is_unfinished: bool = False
    """Whether a JPEG has no end. Only its decoding shows whether its pixels are whole."""
    offset: tuple[int, int] | None = None
    """Where the picture begins on the canvas; None where it covers it. What it leaves is transparent."""
    deep_transparent: tuple[int, int, int] | None = None
    """The colour of 16 bits that is transparent. Pillow knows transparent colours of 8 bits."""

    def file(self, *, is_filled: bool = False) -> BinaryIO:
        """The pieces as one file, at its beginning. An unfinished JPEG gets an end, behind a filler on demand."""
        pieces = self.pieces
        if self.is_unfinished:
            pieces = [*pieces, jpeg_end.FILLER, jpeg_end.END] if is_filled else [*pieces, jpeg_end.END]
        if sum(map(len, pieces)) <= _MOST_COPIED_BYTES:
            return io.BytesIO(b"".join(piece[:] for piece in pieces))
        return cast("BinaryIO", PiecedFile(pieces))


class PiecedFile:
    """A file of pieces that are not copied until they are read: of a file object, what Pillow uses."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = [memoryview(piece) if isinstance(piece, bytes) else piece for piece in pieces if len(piece)]
        self._ends = list(accumulate(map(len, self._pieces)))
        self._size = self._ends[-1] if self._ends else 0
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if size is not None and size > PART_BYTES:
            # Pillow skips so what a PNG has behind its pixels.
            self._at = end
            return b""
        found: list[bytes | memoryview] = []
        number = bisect_right(self._ends, self._at)
        while self._at < end:
            piece_end = self._ends[number]
            piece = self._pieces[number]
            begin = self._at - piece_end + len(piece)
            self._at = min(end, piece_end)
            found.append(piece[begin : len(piece) + self._at - piece_end])
            number += 1
        return bytes(found[0]) if len(found) == 1 else b"".join(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._pieces, self._ends, self._size = [], [], 0
