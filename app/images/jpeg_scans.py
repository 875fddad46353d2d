"""The scans of a JPEG, found by its markers before any pixel is decoded: how many, and which a small picture needs.

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
# What libjpeg gives a file up for when it meets it in or behind a scan's data, and `_MARKER` passes over.
_INVALID_MARKER = re.compile(rb"\xff[\x02-\xbf]")
_SOI, _EOI, _SOS, _PROGRESSIVE_HUFFMAN = 0xD8, 0xD9, 0xDA, 0xC2
# Frames (ITU T.81, B.1.1.3): baseline, extended and arithmetic ones are sequential, and DHT, JPG and DAC are none.
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# A segment holds up to 64 kB, so that a file of 10 MB needs 160 of them; ICC profiles have 255 at the most. Segments
# of 4 bytes are millions, each of which costs Pillow's reader microseconds.
MAX_SEGMENTS = 4096


def count_scans(data: bytes, most: int) -> int:
    """The scans of the JPEG that `data` begins with; of an MPO file, those of its first picture.

    Counts no further than `most + 1`, and no further than 1 where a sequential frame's first scan has all of its
    components: libjpeg decodes such a scan by itself and gives the file up where another one follows (jdinput.c,
    `has_multiple_scans`). That is the usual photo, of which only the head is looked at. Raises `ImageTooComplex` for a
    file of over `MAX_SEGMENTS` segments. Bytes that are no JPEG have no scans, or some; what reads them next will tell.
    """
    scans = segments = frames = components = 0
    found = _MARKER.search(data, 2)
    while found is not None:
        code, at = data[found.end() - 1], found.end()
        if code == _EOI:
            break
        if code in _FRAMES:
            frames += 1
            components = data[at + 7] if code in _SEQUENTIAL and frames == 1 and at + 7 < len(data) else 0
        if code == _SOS:
            scans += 1
            is_whole = scans == 1 and components and data[at + 2 : at + 3] == bytes([components])
            if scans > most or is_whole:
                break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise ImageTooComplex(f"The image has over {MAX_SEGMENTS:,} JPEG segments, and this server reads no more.")
        if code != _SOI:
            # The length counts its own two bytes; libjpeg takes a smaller one for these two.
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        found = _MARKER.search(data, at)
    return scans


def without_refinements(data: bytes) -> bytes:
    """A JPEG that `count_scans` lets in, without what makes its details more precise than a smaller picture shows.

    A progressive JPEG (Huffman coded, SOF2) first gives each coefficient without its last bits, and then scan by scan
    the bits. Of the scans that bring the last and the last but one bit of the coefficients behind a block's mean, the
    data is left out: up to 3 steps of the quantisation table. A scan whose data ends early libjpeg takes as one that
    changes nothing.

    What libjpeg refuses of the whole file it refuses of this too: it gives a file up for its markers, its segments and
    a missing end, never for the Huffman codes in a scan's data. So the heads stay, a last scan that has no end stays,
    and a file with an invalid marker in what would go stays as it is. Damaged Huffman codes it
    takes for other pixels: with their scan left out, these do not show.
    """
    kept: list[bytes] = []
    begin = 0
    is_progressive = False
    found = _MARKER.search(data, 2)
    while found is not None:
        code, at = data[found.end() - 1], found.end()
        if code == _EOI:
            break
        if code != _SOI:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
        is_progressive |= code == _PROGRESSIVE_HUFFMAN
        end_of_head = at
        is_left_out = is_progressive and code == _SOS and _brings_last_bits(data[found.end() + 2 : at])
        found = _MARKER.search(data, at)
        if is_left_out and found is not None:
            if _INVALID_MARKER.search(data, end_of_head, found.start()):
                return data
            kept.append(data[begin:end_of_head])
            begin = found.start()
    return b"".join([*kept, data[begin:]])


def _brings_last_bits(head: bytes) -> bool:
    """Of a scan's head behind its length: the components, then Ss, Se, and Ah and Al in a byte (ITU T.81, B.2.3)."""
    if len(head) != 6:  # one component, which all such scans have
        return False
    first_coefficient, bits_before = head[3], head[5] >> 4
    return first_coefficient > 0 and bits_before in (1, 2)
