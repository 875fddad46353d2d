"""Valid image files of every kind that is served, and what chance and malice make of them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from PIL import Image

from tests.images_made import PNG_SIGNATURE, chunks_of_png, photo, png_of_chunks
from tests.photos import encode

_SIZE = (224, 149)
_EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFE, 0xFF)


@cache
def corpus() -> dict[str, bytes]:
    """Name → file: every format, and in each the modes and kinds that its decoder treats apart."""
    picture = photo().resize(_SIZE)
    grey, alpha = picture.convert("L"), picture.convert("RGBA")
    alpha.putalpha(grey)
    frames = [picture.rotate(angle) for angle in (0, 40, 80)]
    several: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 50}
    exif = Image.Exif()
    exif[0x0112] = 6
    levels = bytes(range(256)) * 512
    return {
        "jpeg": encode(picture, quality=85),
        "jpeg, progressive": encode(picture, progressive=True),
        "jpeg, every pixel's colour": encode(picture, subsampling=0, quality=95),
        "jpeg, grey": encode(grey),
        "jpeg, cmyk": encode(picture.convert("CMYK")),
        "jpeg, turned, with restarts": encode(picture, exif=exif.tobytes(), restart_marker_rows=2),
        "jpeg, optimised": encode(picture, optimize=True, quality=50),
        "png": encode(picture, "PNG"),
        "png, alpha": encode(alpha, "PNG"),
        "png, palette": encode(picture.quantize(64), "PNG", transparency=3),
        "png, grey": encode(grey, "PNG"),
        "png, 1 bit": encode(picture.convert("1"), "PNG"),
        "png, 16 bit": encode(Image.frombytes("I;16", _SIZE, levels[: 2 * grey.width * grey.height]), "PNG"),
        "png, animated": encode(frames[0], "PNG", **several),
        "webp": encode(picture, "WEBP", quality=80),
        "webp, lossless": encode(picture, "WEBP", lossless=True),
        "webp, alpha": encode(alpha, "WEBP"),
        "webp, animated": encode(frames[0], "WEBP", **several),
        "gif": encode(picture.quantize(64), "GIF"),
        "gif, animated": encode(frames[0], "GIF", **several),
        "bmp": encode(picture, "BMP"),
        "bmp, palette": encode(picture.quantize(64), "BMP"),
        "bmp, 1 bit": encode(picture.convert("1"), "BMP"),
    }


def mutated(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged files, each with what it was made from and how."""
    draw = random.Random(seed)
    files = corpus()
    for _ in range(count):
        name = draw.choice(sorted(files))
        change = draw.choice(_CHANGES)
        data = files[name]
        for _ in range(draw.choice((1, 1, 2, 4))):
            data = change(data, draw)
        yield f"{name}; {change.__name__.strip('_')}", data


def gets_past_the_header(data: bytes) -> bool:
    """Whether a decoder takes the file for an image of its format, and so comes to its pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP")):
            return True
    except Exception:
        return False


def _flip_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 2, 8, 32))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set_extremes(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 4, 16))):
        changed[draw.randrange(len(changed))] = draw.choice(_EXTREMES)
    return bytes(changed)


def _set_header_field(data: bytes, draw: random.Random) -> bytes:
    """A number of 2 or 4 bytes among the first 64, at an extreme: sizes, lengths, counts."""
    changed = bytearray(data)
    at = draw.randrange(2, min(64, len(data) - 4))
    order = draw.choice("<>")
    if draw.random() < 0.5:
        struct.pack_into(f"{order}H", changed, at, draw.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF, 16_384, 5_000)))
    else:
        struct.pack_into(f"{order}I", changed, at, draw.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 5_000)))
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, len(data) + 1)]


def _drop_piece(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data)), draw.choice((1, 2, 16, 256))
    return data[:at] + data[at + size :] or data


def _repeat_piece(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data)), draw.choice((1, 16, 256, 4096))
    return data[:at] + data[at : at + size] * draw.choice((2, 8, 64)) + data[at + size :]


def _insert_noise(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 4, 64, 1024))) + data[at:]


def _splice(data: bytes, draw: random.Random) -> bytes:
    """The beginning of this file and the end of another."""
    other = draw.choice(sorted(corpus().values()))
    return data[: draw.randrange(1, len(data) + 1)] + other[draw.randrange(len(other)) :]


def _mend_checksums(data: bytes, draw: random.Random) -> bytes:
    """Of a PNG: contents changed, and the checksums right again, so that more than the checksum is tried."""
    if not data.startswith(PNG_SIGNATURE):
        return _flip_bits(data, draw)
    try:
        chunks = chunks_of_png(data)
        number = draw.randrange(len(chunks))
        kind, body = chunks[number]
        if kind == b"IDAT" and draw.random() < 0.5:
            body = zlib.compress(_set_extremes(zlib.decompress(body), draw))
        elif body:
            body = draw.choice((_set_extremes, _flip_bits, _cut, _repeat_piece))(body, draw)
        chunks[number] = (kind, body)
        return png_of_chunks(chunks)
    except (zlib.error, struct.error, IndexError):
        return _flip_bits(data, draw)


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip_bits,
    _set_extremes,
    _set_header_field,
    _cut,
    _drop_piece,
    _repeat_piece,
    _insert_noise,
    _splice,
    _mend_checksums,
)
