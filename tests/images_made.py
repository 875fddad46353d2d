"""Image files that no camera makes: forged headers, rotated twins, and the real photos that they are made from."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from app.checkpoints import published_resnet50_preprocessing
from app.images import decode
from app.types import Pixels, Preprocessing
from tests.photos import LIMITS

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3


@cache
def photo(name: str = "chelsea") -> Image.Image:
    """A photo that scikit-image carries in its package, as RGB; chelsea is a cat, 451×300."""
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """RGB noise: where one sample of a filter is misplaced, every pixel shows it."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def decoded(data: bytes, preprocessing: Preprocessing | None = None) -> Pixels:
    """`decode` with the default limits and ResNet-50's own preprocessing."""
    return decode(data, preprocessing or published_resnet50_preprocessing(), LIMITS)


def largest_difference(one: Pixels, other: Pixels) -> int:
    """The most that two images differ in one channel of one pixel, in levels of 255."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def stored_turned(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The array that a camera stores for `upright` under an EXIF orientation.

    EXIF 2.32, tag 0x0112, says which side of the scene row 0 and column 0 of the stored image show.
    """
    mirrored = upright.transpose(1, 0, 2)
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: mirrored,  # left, top
        6: mirrored[::-1],  # right, top
        7: mirrored[::-1, ::-1],  # right, bottom
        8: mirrored[:, ::-1],  # left, bottom
    }[orientation]
    return np.ascontiguousarray(stored)


def exif_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: Sequence[bytes] = (),
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG made by hand: `rows` are packed samples, `chunks` go between the header and the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return png_of_chunks([(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")])


def png_of_chunks(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A PNG whose checksums are right, whatever its chunks hold."""
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def chunks_of_png(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks = []
    at = len(PNG_SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def forged_gif(width: int, height: int) -> bytes:
    """A GIF whose screen is 8×8 and whose one frame claims another size."""
    screen = struct.pack("<6sHHBBB", b"GIF89a", 8, 8, 0x80, 0, 0) + bytes(6)
    return screen + struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00\x3b"


def forged_bmp(width: int, height: int) -> bytes:
    return struct.pack("<2sIIIIiiHHIIiiII", b"BM", 1000, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(900)


def forged_jpeg(width: int, height: int) -> bytes:
    """A real small JPEG whose frame header claims another size."""
    target = io.BytesIO()
    photo().resize((64, 48)).save(target, "JPEG")
    data = bytearray(target.getvalue())
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, height, width)
    return bytes(data)


def scan_bomb(size: tuple[int, int], scans: int) -> bytes:
    """A progressive JPEG, one grey level, whose last scan comes again and again: 98 bytes for each pass over it all."""
    target = io.BytesIO()
    Image.new("L", size, 90).save(target, "JPEG", progressive=True)
    data, end = target.getvalue()[:-2], target.getvalue()[-2:]
    # Pillow's file has 6 scans; the last is a table and the scan.
    tables_and_scans = [found.start() for found in re.finditer(rb"\xff[\xc4\xda]", data)]
    return data + data[tables_and_scans[-2] :] * (scans - 6) + end


def forged_webp(width: int, height: int) -> bytes:
    """An animated WebP with one 8×8 frame on a canvas of the claimed size."""
    target = io.BytesIO()
    Image.new("RGB", (8, 8)).save(target, "WEBP", lossless=True)
    frame = _u24(0) + _u24(0) + _u24(7) + _u24(7) + _u24(100) + b"\0" + target.getvalue()[12:]
    canvas = b"\x02\0\0\0" + _u24(width - 1) + _u24(height - 1)
    body = b"WEBP"
    for kind, content in ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame)):
        body += kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _u24(number: int) -> bytes:
    return number.to_bytes(3, "little")
