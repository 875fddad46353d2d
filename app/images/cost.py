"""The predicted time of decoding an image, from its header and the times of earlier images."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Seconds a megapixel takes, before any image of its kind was decoded: measured with photos, two cores of an AMD EPYC.
_AT_FIRST = {"jpeg": 0.015, "progressive": 0.04, "png": 0.03, "webp": 0.045, "gif": 0.015, "bmp": 0.01, "other": 0.01}
# About the last twenty say what is usual.
_KEPT = 0.95
# What an image costs beside its pixels, in megapixels.
_FIXED_MEGAPIXELS = 0.05
# A JPEG's size stands behind its tables and metadata; those of cameras have a dozen segments.
_MOST_SEGMENTS = 64
_FILLING = re.compile(rb"\xff+")
_MOST_FILLING = 16_384
_HAS_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))
_BASELINE = frozenset((0xC0, 0xC1))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Cost:
    """What an image's header says of the work to decode it."""

    kind: str
    """Images of one kind take about as long for a megapixel."""
    megapixels: float


class Costs:
    """Seconds for each kind's megapixel, refined by every image that is decoded."""

    def __init__(self) -> None:
        self._per_megapixel = dict(_AT_FIRST)
        self._usual_seconds = 0.0

    def seconds(self, cost: Cost | None) -> float:
        """How long decoding takes; None stands for an image like those before it."""
        if cost is None:
            return self._usual_seconds
        return self._per_megapixel[cost.kind] * (cost.megapixels + _FIXED_MEGAPIXELS)

    def took(self, cost: Cost, seconds: float) -> None:
        """An image was decoded in `seconds`."""
        each = seconds / (cost.megapixels + _FIXED_MEGAPIXELS)
        self._per_megapixel[cost.kind] += (1 - _KEPT) * (each - self._per_megapixel[cost.kind])
        self._usual_seconds += (seconds - self._usual_seconds) * ((1 - _KEPT) if self._usual_seconds else 1.0)


def cost_of(data: bytes, most_megapixels: float) -> Cost:
    """Read the header, in microseconds. An image above `most_megapixels` costs nothing: it is refused by its header."""
    kind, width, height = _header(data)
    megapixels = width * height / 1e6
    return Cost(kind, megapixels if megapixels <= most_megapixels else 0.0)


def _header(data: bytes) -> tuple[str, int, int]:
    """Kind, width and height; zeros where there are none."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_header(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", _number(data, 16, 4, "big"), _number(data, 20, 4, "big")
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif", _number(data, 6, 2), _number(data, 8, 2)
    if data.startswith(b"BM"):
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return "bmp", abs(width), abs(height)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp", *_webp_size(data)
    return "other", 0, 0


def _number(data: bytes, at: int, size: int, order: str = "little") -> int:
    return int.from_bytes(data[at : at + size], "big" if order == "big" else "little")


def _webp_size(data: bytes) -> tuple[int, int]:
    form = data[12:16]
    if form == b"VP8X":
        return _number(data, 24, 3) + 1, _number(data, 27, 3) + 1
    if form == b"VP8L":
        bits = _number(data, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _number(data, 26, 2) & 0x3FFF, _number(data, 28, 2) & 0x3FFF


def _jpeg_header(data: bytes) -> tuple[str, int, int]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        marker = data[at + 1 : at + 2]
        if data[at : at + 1] != b"\xff" or not marker:
            break
        if marker[0] in _FRAMES:
            kind = "jpeg" if marker[0] in _BASELINE else "progressive"
            return kind, _number(data, at + 7, 2, "big"), _number(data, at + 5, 2, "big")
        if marker[0] == 0xFF:
            filling = _FILLING.match(data, at, at + _MOST_FILLING)
            at = filling.end() - 1 if filling else at + 1
        elif marker[0] in _HAS_NO_LENGTH:
            at += 2
        else:
            at += 2 + _number(data, at + 2, 2, "big")
    return "jpeg", 0, 0
