"""The essential parts of a WebP: one still picture, with its alpha."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import ImageCorrupt, ImageTooComplex
from . import exif
from .geometry import Size
from .picture import DecodeLimits, Picture
from .pieces import Piece

# Encoders write up to eight in front of the pixels, and two behind each frame.
MAX_CHUNKS = 65_536
_RIFF = struct.Struct("<4sI4s")
_CHUNK = struct.Struct("<4sI")
_HAS_ALPHA, _HAS_EXIF, _IS_ANIMATED = 0x10, 0x08, 0x02
_LOSSY, _LOSSLESS, _ALPHA = b"VP8 ", b"VP8L", b"ALPH"
_FRAME_HEAD_BYTES = 16


class _Chunk(NamedTuple):
    kind: bytes
    body: memoryview
    is_whole: bool


class _Still(NamedTuple):
    """One picture's chunks."""

    alpha: memoryview | None
    kind: bytes
    pixels: memoryview

    def size(self) -> Size:
        """By the picture's own header (RFC 9649)."""
        head = bytes(self.pixels[:10])
        if self.kind == _LOSSLESS and len(head) >= 5 and head[0] == 0x2F:
            bits = int.from_bytes(head[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if self.kind == _LOSSY and len(head) == 10 and head[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack("<HH", head[6:])
            return width & 0x3FFF, height & 0x3FFF
        raise ImageCorrupt()

    def has_alpha(self) -> bool:
        return self.alpha is not None or (self.kind == _LOSSLESS and bool(self.pixels[4] & 0x10))


def webp_picture(data: bytes, limits: DecodeLimits) -> Picture:
    """The picture of a WebP, or the first frame of an animation. Raises `ImageTooLarge`, `ImageTooComplex` and
    `ImageCorrupt`.
    """
    _, size, _ = _RIFF.unpack_from(data)
    content = memoryview(data)[_RIFF.size : 8 + size]
    canvas: Size | None = None
    flags = 0
    orientation: int | None = None
    alpha: memoryview | None = None
    still: _Still | None = None
    offset: tuple[int, int] | None = None
    chunks = _Chunks(content)
    for kind, body, is_whole in chunks:
        if kind == b"VP8X" and still is None and canvas is None and len(body) >= 10:
            flags = body[0]
            canvas = _u24(body, 4) + 1, _u24(body, 7) + 1
            limits.check_size(canvas, limits.max_pixels)
        elif kind == b"ANMF" and still is None and flags & _IS_ANIMATED and len(body) >= _FRAME_HEAD_BYTES:
            offset = 2 * _u24(body, 0), 2 * _u24(body, 3)
            still = _frame(body)
        elif kind == _ALPHA and canvas is not None:
            alpha = alpha or body
        elif kind in (_LOSSY, _LOSSLESS) and still is None and not flags & _IS_ANIMATED:
            # A chunk that was cut off has no picture in it that is whole.
            still = _Still(alpha if kind == _LOSSY else None, kind, body) if is_whole else None
            if still is None:
                break
        elif kind == b"EXIF" and orientation is None and flags & _HAS_EXIF:
            orientation = exif.orientation_in(body[6:] if bytes(body[:6]) == exif.PREFIX else body)
        if still is not None and (orientation is not None or not flags & _HAS_EXIF):
            break
    if still is None:
        if chunks.is_over:
            raise ImageTooComplex(f"The image has over {MAX_CHUNKS:,} WebP chunks, and this server reads no more.")
        raise ImageCorrupt()
    return _picture(still, canvas, flags, offset, orientation or exif.UPRIGHT, limits)


def _picture(
    still: _Still,
    canvas: Size | None,
    flags: int,
    offset: tuple[int, int] | None,
    orientation: int,
    limits: DecodeLimits,
) -> Picture:
    size = still.size()
    limits.check_size(size, limits.max_pixels)
    if canvas is None:
        return Picture("webp", _file([(still.kind, still.pixels)]), size)
    if offset is None:
        if size != canvas:
            raise ImageCorrupt()
        has_alpha = bool(flags & _HAS_ALPHA)
    else:
        if offset[0] + size[0] > canvas[0] or offset[1] + size[1] > canvas[1]:
            raise ImageCorrupt()
        has_alpha = still.has_alpha()
    extended = bytes([_HAS_ALPHA if has_alpha else 0, 0, 0, 0]) + _to_u24(size[0] - 1) + _to_u24(size[1] - 1)
    chunks: list[tuple[bytes, Piece]] = [(b"VP8X", extended)]
    if still.alpha is not None:
        chunks.append((_ALPHA, still.alpha))
    pieces = _file([*chunks, (still.kind, still.pixels)])
    return Picture("webp", pieces, canvas, orientation, offset=None if size == canvas else offset)


class _Chunks:
    """The chunks of a file or a frame, one after the other; the last one may be cut off."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = self._count = 0
        self.is_over = False
        """Whether there are more than are read."""

    def __iter__(self) -> _Chunks:
        return self

    def __next__(self) -> _Chunk:
        content, begin = self._content, self._at + 8
        if begin > len(content):
            raise StopIteration
        if self._count == MAX_CHUNKS:
            self.is_over = True
            raise StopIteration
        kind, length = _CHUNK.unpack_from(content, self._at)
        self._count += 1
        self._at = begin + length + length % 2
        return _Chunk(kind, content[begin : begin + length], begin + length <= len(content))


def _frame(body: memoryview) -> _Still:
    """The picture in an animation's frame."""
    alpha: memoryview | None = None
    for kind, content, is_whole in _Chunks(body[_FRAME_HEAD_BYTES:]):
        if not is_whole:
            break
        if kind == _ALPHA:
            alpha = content
        elif kind in (_LOSSY, _LOSSLESS):
            return _Still(alpha if kind == _LOSSY else None, kind, content)
    raise ImageCorrupt()


def _file(chunks: list[tuple[bytes, Piece]]) -> list[Piece]:
    pieces: list[Piece] = []
    for kind, body in chunks:
        pieces += [_CHUNK.pack(kind, len(body)), body, bytes(len(body) % 2)]
    size = 4 + sum(map(len, pieces))
    return [_RIFF.pack(b"RIFF", size, b"WEBP"), *pieces]


def _u24(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")


def _to_u24(number: int) -> bytes:
    return number.to_bytes(3, "little")
