"""The first step of decoding: a bounded walk through the file's structure that finds its essential parts.

Pillow's readers of structure are loops in Python without bounds, which keep whatever metadata they meet, and give a
file up for damage in it. So none of them sees a file that a client sent: what they get was put together here.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UnsupportedImageFormat
from .bmp_parts import bmp_picture, is_bmp
from .gif_parts import gif_picture
from .jpeg_markers import SIGNATURE as JPEG_SIGNATURE
from .jpeg_parts import jpeg_picture
from .picture import DecodeLimits, Picture
from .png_parts import SIGNATURE as PNG_SIGNATURE
from .png_parts import png_picture
from .webp_parts import webp_picture

_READERS: dict[str, Callable[[bytes, DecodeLimits], Picture]] = {
    "jpeg": jpeg_picture,
    "png": png_picture,
    "gif": gif_picture,
    "webp": webp_picture,
    "bmp": bmp_picture,
}


def image_format(data: bytes) -> str | None:
    """The name of the supported format whose signature the first bytes are; None for any other."""
    if data.startswith(JPEG_SIGNATURE):
        return "jpeg"
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if is_bmp(data) else None


def picture_of(data: bytes, limits: DecodeLimits) -> Picture:
    """The essential parts of an image within the limits.

    Raises `UnsupportedImageFormat` (the bytes are none of the five formats, or of a kind of one that is not decoded),
    `ImageTooLarge`, `ImageTooComplex` or `ImageCorrupt`.
    """
    kind = image_format(data)
    if kind is None:
        raise UnsupportedImageFormat()
    return _READERS[kind](data, limits)
