"""The orientation in EXIF metadata, read within bounds."""

from __future__ import annotations

import struct

UPRIGHT = 1
PREFIX = b"Exif\0\0"
"""In front of the directories in a JPEG, and, by some programs, in a WebP."""

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION, _SHORT = 0x0112, 3
# A camera's first directory has about 15 entries.
_MOST_ENTRIES = 4096


def orientation_in(tiff: bytes | memoryview) -> int:
    """1 to 8, by the first directory's tag 0x0112 (EXIF 2.32); 1, upright, where that is damaged or missing."""
    order = _ORDERS.get(bytes(tiff[:4]))
    if order is None or len(tiff) < 8:
        return UPRIGHT
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    if at + 2 > len(tiff):
        return UPRIGHT
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    entry = struct.Struct(f"{order}HHIH")
    for number in range(min(count, _MOST_ENTRIES)):
        begin = at + 2 + 12 * number
        if begin + 12 > len(tiff):
            break
        tag, kind, values, value = entry.unpack_from(tiff, begin)
        if tag == _ORIENTATION:
            return value if (kind, values) == (_SHORT, 1) and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
