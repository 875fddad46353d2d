"""The essential parts of a JPEG: the segments and scans of its first picture."""

from __future__ import annotations

from ..errors import ImageCorrupt, ImageTooComplex, UnsupportedImageFormat
from . import exif
from .geometry import Size
from .jpeg_end import has_end, without_last_fill
from .jpeg_markers import EOI, FRAMES, SIGNATURE, SOS, segments, without_fill
from .jpeg_scans import count_scans, has_all_scans
from .picture import DecodeLimits, Picture

_APP0, _APP1, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_DNL = 0xDC
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xCD, 0xCE, 0xDE, 0xDF})
_JPEG_LS = frozenset({0xF7, 0xF8})
# What libjpeg reads of the two segments that say what the components are (jdmarker.c): a JFIF segment's presence, and
# Adobe's transform. Cut-off ones say nothing.
_JFIF_BYTES, _ADOBE_BYTES = 14, 12
_JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"
# A photo's tables have 600 bytes, one of 16 bits and four components 3,000; Pillow reads them in Python.
_MOST_TABLE_BYTES = 64 * 1024
# Of a larger file, the decoder gets a part at a time.
_ONE_PART_BYTES = 8 << 20


def jpeg_picture(data: bytes, limits: DecodeLimits) -> Picture:
    """The JPEG that `data` begins with; of an MPO file, the first picture.

    What is not of the pixels is left out: comments, thumbnails, profiles, further pictures, and fill bytes. Raises
    `ImageTooLarge`, `ImageTooComplex`, `ImageCorrupt` and `UnsupportedImageFormat`.
    """
    scans = _count_scans(data, limits)
    head, scans_begin, size, orientation = _head(data)
    limits.check_size(size, limits.max_pixels_jpeg)
    if size[0] * size[1] / 1e6 * scans > limits.max_jpeg_megapixel_scans:
        raise ImageTooComplex(
            f"The image is {size[0]}×{size[1]} in {scans} scans; megapixels times scans may be "
            f"{limits.max_jpeg_megapixel_scans:g} at the most."
        )
    rest: list[memoryview] = [memoryview(data)[scans_begin:]]
    if len(data) > _ONE_PART_BYTES:
        rest = without_fill(data, scans_begin)
    is_unfinished = not has_end(data, scans_begin)
    if is_unfinished:
        if not has_all_scans(data):
            raise ImageCorrupt()
        rest = without_last_fill(rest)
    return Picture("jpeg", [head, *rest], size, orientation, scans, scans_begin, is_unfinished)


def _count_scans(data: bytes, limits: DecodeLimits) -> int:
    scans = count_scans(data, limits.max_jpeg_scans)
    if scans > limits.max_jpeg_scans:
        raise ImageTooComplex(f"The image has more scans than the {limits.max_jpeg_scans} that this server decodes.")
    return scans


def _head(data: bytes) -> tuple[bytes, int, Size, int]:
    """What is needed of everything in front of the first scan, where that begins, the picture's size, and EXIF's
    orientation.
    """
    kept: list[bytes | memoryview] = [SIGNATURE[:2]]
    kept_bytes = 0
    size: Size | None = None
    orientation: int | None = None
    for code, begin, body, end in segments(data):
        if code == SOS and size is not None:
            return b"".join(kept), begin, size, orientation or exif.UPRIGHT
        if code in (SOS, EOI) or end > len(data):
            break
        if code in FRAMES or code in _HIERARCHICAL or code in _JPEG_LS:
            size = _frame_size(code, data[body:end])
        elif code == _APP1 and orientation is None and data.startswith(exif.PREFIX, body, end):
            orientation = exif.orientation_in(data[body + len(exif.PREFIX) : end])
        piece = _essential(code, begin, body, end, data)
        kept.append(piece)
        kept_bytes += len(piece)
        if kept_bytes > _MOST_TABLE_BYTES:
            raise ImageTooComplex(
                f"The image has over {_MOST_TABLE_BYTES // 1024} kB of JPEG tables in front of its pixels, and this "
                "server reads no more."
            )
    raise ImageCorrupt()


def _essential(code: int, begin: int, body: int, end: int, data: bytes) -> bytes:
    """Of a segment, what a decoder acts upon."""
    if code == _APP0 and end - body >= _JFIF_BYTES and data.startswith(b"JFIF\0", body):
        return _segment(code, _JFIF)
    if code == _APP14 and end - body >= _ADOBE_BYTES and data.startswith(b"Adobe", body):
        return _segment(code, data[body : body + _ADOBE_BYTES])
    if _APP0 <= code <= _APP15 or code in (_COM, _DNL):
        return b""
    return data[begin:end]


def _segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + (len(body) + 2).to_bytes(2, "big") + body


def _frame_size(code: int, body: bytes) -> Size:
    """Of a frame's head: precision, height, width, and the number of components."""
    if code in _JPEG_LS:
        raise _unsupported("JPEG-LS")
    if code in _LOSSLESS:
        raise _unsupported("lossless JPEG")
    if code in _HIERARCHICAL:
        raise _unsupported("hierarchical JPEG")
    if len(body) < 6:
        raise ImageCorrupt()
    if body[0] != 8:
        raise _unsupported(f"JPEG of {body[0]} bits a sample")
    width, height = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
    if width == 0 or height == 0:
        raise ImageCorrupt()
    return width, height


def _unsupported(name: str) -> UnsupportedImageFormat:
    return UnsupportedImageFormat(
        f"The image is a {name}, which this server does not decode. Send a baseline or progressive JPEG of 8 bits a "
        "sample, or a PNG."
    )
