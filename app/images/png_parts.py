"""The essential parts of a PNG: header, palette, transparency and pixels; of an animation, the first frame."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ..errors import ImageCorrupt, ImageTooComplex, UnsupportedImageFormat
from . import exif
from .picture import DecodeLimits, Picture
from .pieces import Piece
from .png_data import MANY_OF_ONE_SIZE, PixelData, past_equal_chunks

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Encoders put 8 kB and more into a chunk: 64 MB are 8,192 of these. Small ones of one size in a row count as a few. To
# go past so many takes 70 ms.
MAX_CHUNKS = 131_072
# Chunks that say something, each or the first of them: those are looked at one by one.
_TAKEN = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IEND", b"CgBI"})
_CHUNK = struct.Struct(">I4s")
_FRAME = struct.Struct(">4xIIII")
_SEQUENCE_BYTES = 4
_MOST_LENGTH = 0x7FFFFFFF
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass(slots=True)
class _Frame:
    """A frame of an animation that the default image is not part of."""

    width: int
    height: int
    left: int
    top: int
    data: PixelData


@dataclass(slots=True)
class _Found:
    data: PixelData
    header: bytes = b""
    palette: bytes | None = None
    transparent: bytes | None = None
    exif: memoryview | None = None
    is_animated: bool = False
    frames: int = 0
    frame: _Frame | None = None
    """The first one, where it is not the default image."""


def png_picture(content: bytes, limits: DecodeLimits) -> Picture:
    """The picture that a browser shows of a PNG. Damage in what is not of its pixels is passed over.

    Raises `ImageTooLarge`, `ImageTooComplex`, `ImageCorrupt` and `UnsupportedImageFormat`.
    """
    found = _walk(content, limits)
    if not found.header or not found.data:
        raise ImageCorrupt()
    width, height, depth, colour = struct.unpack(">IIBB", found.header[:10])
    if colour == _PALETTE and found.palette is None:
        raise ImageCorrupt()
    header, offset, data = found.header, None, found.data
    frame = found.frame
    if frame is not None and frame.data:
        header = struct.pack(">II", frame.width, frame.height) + header[8:]
        offset, data = (frame.left, frame.top), frame.data
    transparent, deep = _transparent(found, depth, colour)
    pieces: list[Piece] = [SIGNATURE + _chunk(b"IHDR", header)]
    if found.palette is not None and colour == _PALETTE:
        pieces.append(_chunk(b"PLTE", found.palette))
    if transparent is not None:
        pieces.append(_chunk(b"tRNS", transparent))
    pixels = data.pieces()
    # In one chunk: Pillow goes from one to the next in Python. It does not look at the sum behind it.
    pieces += [_CHUNK.pack(sum(map(len, pixels)), b"IDAT"), *pixels, bytes(4), _chunk(b"IEND", b"")]
    orientation = exif.UPRIGHT if found.exif is None else exif.orientation_in(found.exif)
    return Picture("png", pieces, (width, height), orientation, offset=offset, deep_transparent=deep)


def _walk(data: bytes, limits: DecodeLimits) -> _Found:
    found = _Found(PixelData(data))
    view = memoryview(data)
    at, is_behind_pixels = len(SIGNATURE), False
    last, same = (0, b""), 0
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return found
        length, kind = _CHUNK.unpack_from(data, at)
        body, end = at + 8, at + 8 + length
        at = end + 4
        same = same + 1 if (length, kind) == last else 0
        last = (length, kind)
        run = at
        if same == MANY_OF_ONE_SIZE and at <= len(data) and kind not in _TAKEN:
            at, same = past_equal_chunks(data, at, length), 0
        if kind == b"IDAT":
            if not is_behind_pixels and length:
                found.data.add(body, end)
                found.data.add_run(run + 8, length, at)
            continue
        # A chunk of another kind ends the pixels: they must lie one behind the other.
        is_behind_pixels = bool(found.data)
        if kind == b"IEND" or length > _MOST_LENGTH:
            return found
        if kind == b"fdAT":
            if found.frame is not None and found.frames == 1 and length > _SEQUENCE_BYTES:
                found.frame.data.add(body + _SEQUENCE_BYTES, end)
        else:
            _take(found, kind, view[body:end], view[end:at], is_behind_pixels, limits)
        if found.frames > 1 and is_behind_pixels and (found.frame is None or found.frame.data):
            return found
    if not is_behind_pixels or (found.frame is not None and not found.frame.data):
        raise ImageTooComplex(f"The image has over {MAX_CHUNKS:,} PNG chunks, and this server reads no more.")
    return found


def _take(
    found: _Found,
    kind: bytes,
    body: memoryview,
    checksum: memoryview,
    is_behind_pixels: bool,
    limits: DecodeLimits,
) -> None:
    """Note a chunk that says something of the pixels. As browsers do (libpng), of two that may be there once the first
    counts, and an ancillary one of another length or checksum than it must have does not.
    """
    if kind == b"IHDR" or not found.header:
        if kind == b"CgBI":
            raise UnsupportedImageFormat(
                "The image is in Apple's variety of PNG (CgBI), which this server does not decode. Convert it to PNG."
            )
        if kind != b"IHDR" or found.header or not _is_right(kind, body, checksum):
            raise ImageCorrupt()
        found.header = _header(bytes(body), limits)
    elif kind == b"PLTE" and not found.data and found.palette is None:
        if not _is_right(kind, body, checksum):
            raise ImageCorrupt()
        found.palette = _palette(bytes(body[:768]), len(body), found.header)
    elif kind == b"tRNS" and not found.data and found.transparent is None:
        if len(body) <= 256 and _is_right(kind, body, checksum):
            found.transparent = bytes(body)
    elif kind == b"eXIf" and found.exif is None:
        if _is_right(kind, body, checksum):
            found.exif = body
    elif kind == b"acTL" and not found.data and len(body) == 8:
        found.is_animated = int.from_bytes(body[:4], "big") > 0
    elif kind == b"fcTL" and found.is_animated:
        found.frames += 1
        if found.frames == 1 and is_behind_pixels:
            found.frame = _frame(body, found.header, found.data.of_same_file())


def _is_right(kind: bytes, body: memoryview, checksum: memoryview) -> bool:
    return len(checksum) == 4 and zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(checksum, "big")


def _header(body: bytes, limits: DecodeLimits) -> bytes:
    if len(body) != 13:
        raise ImageCorrupt()
    width, height, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", body)
    is_known = depth in _DEPTHS.get(colour, ()) and compression == filtering == 0 and interlaced <= 1
    if not is_known or width == 0 or height == 0:
        raise ImageCorrupt()
    limits.check_size((width, height), limits.max_pixels)
    return body


def _palette(body: bytes, length: int, header: bytes) -> bytes | None:
    """The entries that the depth of the pixels can name."""
    depth, colour = header[8], header[9]
    if colour != _PALETTE:
        return None
    if length % 3 or length == 0:
        raise ImageCorrupt()
    return body[: 3 << depth]


def _frame(body: memoryview, header: bytes, data: PixelData) -> _Frame | None:
    if len(body) != 26:
        return None
    width, height, left, top = _FRAME.unpack_from(body)
    canvas = struct.unpack(">II", header[:8])
    is_inside = 0 < width <= canvas[0] - left and 0 < height <= canvas[1] - top
    return _Frame(width, height, left, top, data) if is_inside else None


def _transparent(found: _Found, depth: int, colour: int) -> tuple[bytes | None, tuple[int, int, int] | None]:
    """The chunk that Pillow gets of what is transparent, and the colour that Pillow does not know."""
    body = found.transparent
    if body is None:
        return None, None
    if colour == _PALETTE:
        entries = len(found.palette or b"") // 3
        return body[:entries] or None, None
    if colour not in (_GREY, _RGB) or len(body) != 2 * _CHANNELS[colour]:
        return None, None
    levels = [level & ((1 << depth) - 1) for level in struct.unpack(f">{_CHANNELS[colour]}H", body)]
    if colour == _RGB and depth == 16:
        return None, (levels[0], levels[1], levels[2])
    return struct.pack(f">{len(levels)}H", *levels), None


def _chunk(kind: bytes, body: bytes) -> bytes:
    return _CHUNK.pack(len(body), kind) + body + zlib.crc32(kind + body).to_bytes(4, "big")
