"""The JPEGs that every decoder reads in one way, told by their markers alone."""

from __future__ import annotations

import re

from .jpeg_markers import MAX_SEGMENTS, SIGNATURE

_SOF0, _DHT, _EOI, _SOS, _DQT, _DRI, _APP14, _COM = 0xC0, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xEE, 0xFE
_PASSED_OVER = frozenset({*range(0xE0, 0xF0), _COM, _DRI})
# Identifiers of Y, Cb and Cr (JFIF 1.02). libjpeg takes others for them too, or for R, G and B (jdapimin.c).
_COMPONENTS = (1, 2, 3)
# Sampling of Y where Cb's and Cr's is 1×1, across in the upper four bits: 4:4:4, 4:4:0, 4:2:2, 4:2:0.
_LUMA_SAMPLING = frozenset({0x11, 0x12, 0x21, 0x22})
# Of a scan's head: the components with their tables are between these, then Ss, Se, and Ah and Al (ITU T.81, B.2.3).
_WHOLE_SPECTRUM = b"\x00\x3f\x00"
_YCC_TRANSFORM = 1
# What ends a scan's data: any marker but a restart (D0 to D7); FF 00 is a level of 255.
_END = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# What is looked through at a time, since a search holds the interpreter lock.
_WINDOW_BYTES = 1 << 20


def baseline_end(data: bytes) -> int | None:
    """Where the picture of an ordinary JPEG ends, behind its EOI; None of any other file.

    Ordinary is: baseline and Huffman coded with 8 bits, YCbCr as 4:4:4, 4:4:0, 4:2:2 or 4:2:0, one scan of all three
    components, each table there, and nothing but restarts and the end behind the scan's head. What follows the end (the
    further pictures of an MPO, padding) no decoder looks at.
    """
    if not data.startswith(SIGNATURE):
        return None
    tables: set[int] = set()
    is_framed = False
    at = 2
    for _ in range(MAX_SEGMENTS):
        # Where a segment ends the next one begins: bytes between them libjpeg would pass over.
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            return None
        code, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body, at = data[at + 4 : at + 2 + length], at + 2 + length
        if length < 2 or len(body) != length - 2:
            return None
        if code == _SOS:
            is_ordinary = is_framed and tables == {_DHT, _DQT} and _is_whole_scan(body)
            return _end_of_scan(data, at) if is_ordinary else None
        if code == _SOF0 and not is_framed and _is_ordinary_frame(body):
            is_framed = True
        elif code in (_DHT, _DQT):
            tables.add(code)
        elif code not in _PASSED_OVER or (code == _APP14 and not _says_ycc(body)):
            return None
    return None


def _end_of_scan(data: bytes, at: int) -> int | None:
    """Behind the EOI that ends the scan at `at`; None where something else does."""
    for begin in range(at, len(data), _WINDOW_BYTES):
        end = _END.search(data, begin, begin + _WINDOW_BYTES + 1)
        if end is not None:
            return end.end() if data[end.end() - 1] == _EOI else None
    return None


def _is_ordinary_frame(body: bytes) -> bool:
    """Of a frame's head: precision, height, width, and of each component its name, sampling and table."""
    if len(body) != 15 or body[0] != 8 or body[5] != 3 or (body[6], body[9], body[12]) != _COMPONENTS:
        return False
    return body[7] in _LUMA_SAMPLING and body[10] == body[13] == 0x11


def _is_whole_scan(body: bytes) -> bool:
    return (
        len(body) == 10
        and body[0] == 3
        and (body[1], body[3], body[5]) == _COMPONENTS
        and body.endswith(_WHOLE_SPECTRUM)
    )


def _says_ycc(body: bytes) -> bool:
    """Whether an Adobe segment leaves the colours what they are; other programs' APP14 says nothing of them."""
    return not body.startswith(b"Adobe") or (len(body) >= 12 and body[11] == _YCC_TRANSFORM)
