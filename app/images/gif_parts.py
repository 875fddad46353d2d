"""The essential parts of a GIF: its first frame, as a file whose screen is that frame."""

from __future__ import annotations

import re
import struct

import numpy as np

from ..errors import ImageCorrupt, ImageTooComplex
from .picture import DecodeLimits, Picture
from .pieces import Piece

# Comments, an animation's settings and XMP lie in front of a frame, in blocks of up to 255 bytes. Many of one size in a
# row, as in every long comment, count as a few; others are in XMP, whose 80 MB are so many. To go past so many blocks
# takes 100 ms, and past so many extensions as well.
MAX_BLOCKS = 1 << 20
MAX_EXTENSIONS = 98_304
# From so many blocks of one size on, the ones behind them are looked at together, in windows that become larger.
_MANY_OF_ONE_SIZE = 32
_FIRST_WINDOW_BLOCKS, _WINDOW_BLOCKS = 64, 1 << 18
_EXTENSION, _FRAME, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9
_SCREEN = struct.Struct("<6sHHBBB")
_DESCRIPTOR = struct.Struct("<HHHHB")
_HAS_PALETTE, _PALETTE_SIZE = 0x80, 0x07
_IS_TRANSPARENT = 0x01
_INTRODUCERS = re.compile(rb"[!,;]")
# What some encoders leave between blocks.
_MOST_JUNK_BYTES = 4096


def gif_picture(data: bytes, limits: DecodeLimits) -> Picture:
    """The first frame of a GIF, on its screen. Raises `ImageTooLarge`, `ImageTooComplex` and `ImageCorrupt`."""
    if len(data) < _SCREEN.size:
        raise ImageCorrupt()
    _, width, height, flags, _, _ = _SCREEN.unpack_from(data)
    at = _SCREEN.size
    palette, at = _palette(data, at, flags)
    begin, transparent = _first_frame(data, at)
    if begin + _DESCRIPTOR.size > len(data):
        raise ImageCorrupt()
    left, top, frame_width, frame_height, frame_flags = _DESCRIPTOR.unpack_from(data, begin)
    own_palette, at = _palette(data, begin + _DESCRIPTOR.size, frame_flags)
    palette = own_palette or palette
    if not palette or frame_width == 0 or frame_height == 0:
        raise ImageCorrupt()
    # A first frame that reaches beyond the screen makes it larger, as in browsers.
    size = max(width, left + frame_width), max(height, top + frame_height)
    limits.check_size(size, limits.max_pixels)
    bits = _HAS_PALETTE | (len(palette) // 3).bit_length() - 2
    pieces: list[Piece] = [_SCREEN.pack(b"GIF89a", frame_width, frame_height, bits, 0, 0), palette]
    if transparent is not None:
        pieces.append(bytes([_EXTENSION, _GRAPHIC_CONTROL, 4, _IS_TRANSPARENT, 0, 0, transparent, 0]))
    frame_flags &= ~(_HAS_PALETTE | _PALETTE_SIZE)
    pieces.append(b"," + _DESCRIPTOR.pack(0, 0, frame_width, frame_height, frame_flags))
    pieces.append(memoryview(data)[at:])
    offset = None if size == (frame_width, frame_height) else (left, top)
    return Picture("gif", pieces, size, offset=offset)


def _palette(data: bytes, at: int, flags: int) -> tuple[bytes, int]:
    """The colours that lie at `at`, and what is behind them."""
    if not flags & _HAS_PALETTE:
        return b"", at
    end = at + (6 << (flags & _PALETTE_SIZE))
    if end > len(data):
        raise ImageCorrupt()
    return data[at:end], end


def _first_frame(data: bytes, at: int) -> tuple[int, int | None]:
    """Where the descriptor of the first frame is, and the palette entry that is transparent in it."""
    transparent: int | None = None
    blocks = 0
    for _ in range(MAX_EXTENSIONS):
        found = _INTRODUCERS.search(data, at, at + _MOST_JUNK_BYTES)
        if found is None or data[found.start()] == _TRAILER:
            raise ImageCorrupt()
        at = found.end()
        if data[found.start()] == _FRAME:
            return at, transparent
        label, at = data[at : at + 1], at + 1
        body = data[at + 1 : at + 1 + data[at]] if at < len(data) else b""
        if label == bytes([_GRAPHIC_CONTROL]) and len(body) >= 4:
            transparent = body[3] if body[0] & _IS_TRANSPARENT else None
        at, passed = _past_blocks(data, at, MAX_BLOCKS - blocks)
        blocks += passed
        if blocks >= MAX_BLOCKS:
            break
    raise ImageTooComplex(
        f"The image has over {MAX_BLOCKS:,} GIF blocks or {MAX_EXTENSIONS:,} extensions in front of its first frame, "
        f"and this server reads no more."
    )


def _past_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """What is behind the blocks at `at` and the empty one that ends them, and how many were counted: `most` at most."""
    count = same = last = 0
    try:
        while (length := data[at]) and count < most:
            same = same + 1 if length == last else 0
            last = length
            at += length + 1
            count += 1
            if same == _MANY_OF_ONE_SIZE:
                at, same = _past_equal_blocks(data, at, length), 0
    except IndexError:
        raise ImageCorrupt() from None
    return at + 1, count + 1


def _past_equal_blocks(data: bytes, at: int, length: int) -> int:
    """The first block at or behind `at` that is not of `length`, or what is behind the data."""
    step = length + 1
    window = _FIRST_WINDOW_BLOCKS
    while at < len(data):
        lengths = np.frombuffer(data, np.uint8, min(window * step, len(data) - at), at)[::step]
        others = np.flatnonzero(lengths != length)
        if len(others):
            return at + step * int(others[0])
        at += step * len(lengths)
        window = min(2 * window, _WINDOW_BLOCKS)
    return at
