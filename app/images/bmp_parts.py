"""The essential parts of a BMP: its pixels behind a plain header, in a layout that Pillow reads."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import ImageCorrupt, UnsupportedImageFormat
from .bmp_pixels import BGRX, Masks, unmasked, unpacked
from .geometry import Size
from .picture import DecodeLimits, Picture
from .pieces import Piece

_FILE = struct.Struct("<2sI4xI")
_OS2_1 = struct.Struct("<HHHH")
_INFO = struct.Struct("<iiHHIIiiII")
# Windows' own, of version 1 with or without masks, 4 and 5, and OS/2's, of which those of version 2 may be cut short.
_HEADER_BYTES = frozenset({12, *range(16, 65, 4), 108, 124})
_RAW, _RUNS_8, _RUNS_4, _MASKS, _JPEG, _PNG, _MASKS_WITH_ALPHA = range(7)
_DEPTHS = {
    _RAW: (1, 2, 4, 8, 16, 24, 32),
    _RUNS_8: (8,),
    _RUNS_4: (4,),
    _MASKS: (16, 32),
    _MASKS_WITH_ALPHA: (16, 32),
}
_PLAIN_32: Masks = (0xFF0000, 0xFF00, 0xFF, 0)
# What Pillow widens to 8 bits by itself.
_PLAIN_16: tuple[Masks, ...] = ((0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0))


class _Header(NamedTuple):
    size: Size
    depth: int
    is_top_down: bool
    compression: int
    masks: Masks
    palette: bytes
    """Four bytes a colour, for each that the depth can name."""
    begin: int
    """Of the pixels."""

    @property
    def row_bytes(self) -> int:
        """Rows begin at multiples of four bytes."""
        return (self.size[0] * self.depth + 31) // 32 * 4


def is_bmp(data: bytes) -> bool:
    """Whether the first bytes are a BMP's: "BM", with which words begin too, and either the reserved bytes, which are 0
    in almost every file, or the size of a header that there is.
    """
    is_known = int.from_bytes(data[14:18], "little") in _HEADER_BYTES
    return data[:2] == b"BM" and (is_known or data[6:10] == bytes(4))


def bmp_picture(data: bytes, limits: DecodeLimits) -> Picture:
    """The picture of a BMP. Raises `ImageTooLarge`, `ImageTooComplex`, `ImageCorrupt` and `UnsupportedImageFormat`."""
    header = _read(data, limits)
    pixels = memoryview(data)[header.begin :]
    if header.compression in (_RUNS_8, _RUNS_4):
        is_4_bit = header.compression == _RUNS_4
        indices, colours = unpacked(pixels, header.size, header.palette, is_4_bit=is_4_bit)
        if colours is None:
            return Picture("bmp", _file(header, 8, indices, palette=header.palette.ljust(1024, b"\0")), header.size)
        return Picture("bmp", _file(header, 32, colours, masks=BGRX), header.size)
    whole = _whole(pixels, header)
    if header.compression == _RAW or header.masks == _PLAIN_32:
        return Picture("bmp", _file(header, header.depth, *whole, palette=header.palette), header.size)
    if header.depth == 16 and header.masks in _PLAIN_16:
        return Picture("bmp", _file(header, 16, *whole, masks=header.masks), header.size)
    colours, masks = unmasked(pixels, header.size, header.depth, header.masks)
    return Picture("bmp", _file(header, 32, colours, masks=masks), header.size)


def _read(data: bytes, limits: DecodeLimits) -> _Header:
    if len(data) < _FILE.size + 4:
        raise ImageCorrupt()
    _, _, begin = _FILE.unpack_from(data)
    length = int.from_bytes(data[14:18], "little")
    body = data[18 : 14 + length]
    if length not in _HEADER_BYTES or len(body) != length - 4:
        raise ImageCorrupt()
    if length == 12:
        width, height, _, depth = _OS2_1.unpack(body)
        compression = colours = 0
    else:
        width, height, _, depth, compression, _, _, _, colours, _ = _INFO.unpack(
            body[: _INFO.size].ljust(_INFO.size, b"\0")
        )
    _check_layout(depth, compression, length)
    size = width, abs(height)
    if width <= 0 or height == 0 or (height < 0 and compression in (_RUNS_8, _RUNS_4)):
        raise ImageCorrupt()
    limits.check_size(size, limits.max_pixels)
    at = 14 + length
    masks = _PLAIN_32
    if compression in (_MASKS, _MASKS_WITH_ALPHA):
        masks, at = _masks(data, at, length, compression)
    palette, at = _palette(data, at, depth, colours, 3 if length == 12 else 4, begin)
    # A file that says that its pixels lie where its palette does means that they lie behind it.
    begin = at if begin < 14 + length or (begin < at and depth <= 8 and begin == 14 + length) else begin
    return _Header(size, depth, height < 0, compression, masks, palette, begin)


def _check_layout(depth: int, compression: int, length: int) -> None:
    if compression in (_JPEG, _PNG) and length != 64:
        inside = "JPEG" if compression == _JPEG else "PNG"
        raise UnsupportedImageFormat(
            f"The image is a BMP with a {inside} inside, which this server does not decode. Send the {inside} itself."
        )
    if depth not in _DEPTHS.get(compression, ()):
        raise ImageCorrupt()


def _masks(data: bytes, at: int, length: int, compression: int) -> tuple[Masks, int]:
    """Of red, green, blue and alpha: in the header, or behind one of version 1."""
    count = 4 if length >= 56 or compression == _MASKS_WITH_ALPHA else 3
    begin = 54
    if begin + 4 * count > len(data):
        raise ImageCorrupt()
    masks = struct.unpack_from(f"<{count}I", data, begin)
    behind = at + 4 * count if length == 40 else at
    return (masks[0], masks[1], masks[2], masks[3] if count == 4 else 0), behind


def _palette(data: bytes, at: int, depth: int, colours: int, entry: int, begin: int) -> tuple[bytes, int]:
    """The colours at `at`, and what is behind them. There may be more of them than pixels can name, and fewer."""
    if depth > 8:
        return b"", at
    most = 1 << depth
    count = min(colours or most, (len(data) - at) // entry)
    behind = at + entry * count
    if at < begin < behind:
        count = (begin - at) // entry
    found = data[at : at + entry * min(count, most)]
    if entry == 3:
        found = b"".join(found[each : each + 3] + b"\0" for each in range(0, len(found), 3))
    return found.ljust(4 * most, b"\0"), behind


def _whole(pixels: memoryview, header: _Header) -> list[Piece]:
    """The rows; of the last one, the bytes that fill it up may be missing."""
    expected = header.row_bytes * header.size[1]
    filling = header.row_bytes - (header.size[0] * header.depth + 7) // 8
    missing = expected - len(pixels)
    if missing > filling:
        raise ImageCorrupt()
    return [pixels[:expected], bytes(max(0, missing))]


def _file(header: _Header, depth: int, *pixels: Piece, palette: bytes = b"", masks: Masks | None = None) -> list[Piece]:
    height = -header.size[1] if header.is_top_down else header.size[1]
    compression = _RAW if masks is None else _MASKS
    body = _INFO.pack(header.size[0], height, 1, depth, compression, 0, 0, 0, len(palette) // 4, 0)
    if masks is not None:
        body += struct.pack("<IIII", *masks)
    body = (len(body) + 4).to_bytes(4, "little") + body + palette
    return [_FILE.pack(b"BM", 0, _FILE.size + len(body)) + body, *pixels]
