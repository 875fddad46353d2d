"""Check of a JPEG without an end marker: whether all of its pixels are there."""

from __future__ import annotations

import random

from PIL import Image

from ..errors import ImageCorrupt

END = b"\xff\xd9"
# Bits that no scan goes on with by chance: no FF, which would be a marker.
FILLER = bytes(random.Random(0).choices(range(255), k=256))
_STRIPE_ROWS = 64
# What is looked through at a time, since a search holds the interpreter lock.
_WINDOW_BYTES = 1 << 20


def has_end(data: bytes, begin: int) -> bool:
    """Whether an end stands behind `begin`, where the first scan does. Of most files, the last two bytes are one."""
    end = len(data)
    while end > begin:
        first = max(begin, end - _WINDOW_BYTES)
        if data.rfind(END, first, end + 1) >= 0:
            return True
        end = first
    return False


def without_last_fill(pieces: list[memoryview]) -> list[memoryview]:
    """The last piece without the FF at its end, of which one may be the half of an end."""
    last = pieces[-1]
    size = len(last)
    while size and last[size - 1] == 0xFF:
        size = max(0, size - _WINDOW_BYTES) + len(bytes(last[max(0, size - _WINDOW_BYTES) : size]).rstrip(b"\xff"))
    return [*pieces[:-1], last[:size]]


def check_is_whole(ended: Image.Image, filled: Image.Image) -> None:
    """Raises `ImageCorrupt` where the pixels depend on what is behind the end of the data.

    `ended` was decoded with `END` behind it, `filled` with `FILLER` and then `END`. libjpeg only warns of data that end
    early, and makes something up for them; with other bits it makes up something else. What is behind the last pixel
    it passes over.
    """
    for top in range(0, ended.height, _STRIPE_ROWS):
        stripe = (0, top, ended.width, min(top + _STRIPE_ROWS, ended.height))
        if ended.crop(stripe).tobytes() != filled.crop(stripe).tobytes():
            raise ImageCorrupt()
