"""How many scans a JPEG has, counted from its markers before any pixel is decoded.

A progressive JPEG is decoded by going over the whole picture once for each scan, and a scan that changes nothing is
smaller than 200 bytes: what a file of this kind costs is its area times its scans, and no pixel limit sees it.
"""

from __future__ import annotations

import re

from ..errors import ImageTooComplex

SIGNATURE = b"\xff\xd8\xff"

# A marker that libjpeg acts upon, found as its jdmarker.c finds it: behind any other bytes, which makes a scan's data
# such bytes too. There FF 00 is a level of 255, and RST0 to RST7 (D0 to D7) are no ends. Codes below C0 have no segment
# to skip: where libjpeg looks for a restart it goes on behind them, and elsewhere it gives the file up.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# A segment holds up to 64 kB, so that a file of 10 MB needs 160 of them; ICC profiles have 255 at the most. Segments
# of 4 bytes are millions, each of which costs Pillow's reader microseconds.
MAX_SEGMENTS = 4096


def count_scans(data: bytes, most: int) -> int:
    """The scans of the JPEG that `data` begins with; of an MPO file, those of its first picture.

    Counts no further than `most + 1`. Raises `ImageTooComplex` for a file of over `MAX_SEGMENTS` segments. Bytes that
    are no JPEG have no scans, or some; what reads them next will tell.
    """
    scans = segments = 0
    found = _MARKER.search(data, 2)
    while found is not None:
        code, at = data[found.end() - 1], found.end()
        if code == _EOI:
            break
        if code == _SOS:
            scans += 1
            if scans > most:
                break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise ImageTooComplex(f"The image has over {MAX_SEGMENTS:,} JPEG segments, and this server reads no more.")
        if code != _SOI:
            # The length counts its own two bytes; libjpeg takes a smaller one for these two.
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        found = _MARKER.search(data, at)
    return scans
