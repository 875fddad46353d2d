"""Files of very many parts: shown where a browser shows them, and too complex, never damaged, where they are not."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from app.checkpoints import published_resnet50_preprocessing
from app.errors import ImageTooComplex
from app.images import decode
from app.images.gif_parts import MAX_BLOCKS, MAX_EXTENSIONS
from app.images.png_parts import MAX_CHUNKS
from tests import odd_images as odd
from tests.photos import LIMITS, encode

PREPROCESSING = published_resnet50_preprocessing()


def pixels(data: bytes) -> np.ndarray:
    return decode(data, PREPROCESSING, LIMITS)


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8))


def png_in_pieces(image: Image.Image, sizes: Iterator[int], *, is_behind_default: bool = False) -> tuple[bytes, int]:
    """A PNG whose pixels come in chunks of these sizes, and how many there are."""
    whole = encode(image, "PNG")
    data, at = b"", 33
    while at < len(whole):
        length = struct.unpack_from(">I", whole, at)[0]
        if whole[at + 4 : at + 8] == b"IDAT":
            data += whole[at + 8 : at + 8 + length]
        at += length + 12
    chunks, at = [], 0
    while at < len(data):
        size = next(sizes)
        body = data[at : at + size]
        if is_behind_default:
            chunks.append(odd.png_chunk(b"fdAT", len(chunks).to_bytes(4, "big") + body))
        else:
            chunks.append(odd.png_chunk(b"IDAT", body))
        at += size
    if is_behind_default:
        control = odd.png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *image.size, 0, 0, 1, 1, 0, 0))
        default = odd.png_chunk(b"IDAT", zlib.compress(bytes(image.height * (3 * image.width + 1))))
        chunks = [odd.png_chunk(b"acTL", struct.pack(">II", 1, 0)), default, control, *chunks]
    return whole[:33] + b"".join(chunks) + odd.png_chunk(b"IEND", b""), len(chunks)


def always(size: int) -> Iterator[int]:
    while True:
        yield size


def varied(most: int) -> Iterator[int]:
    source = random.Random(2)
    while True:
        yield source.randint(0, most)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_any_number_of_small_chunks_of_one_size_is_shown(size: int) -> None:
    """An encoder with a small buffer writes as many chunks as the pixels take: only changes of size are counted."""
    side = 300 if size == 1 else 600 if size == 7 else 1900
    data, count = png_in_pieces(noise(side), always(size))
    assert count > MAX_CHUNKS
    assert np.array_equal(pixels(data), pixels(encode(noise(side), "PNG")))


@pytest.mark.parametrize("is_behind_default", [False, True], ids=["IDAT", "fdAT"])
def test_chunks_of_all_sizes_are_shown_up_to_the_limit(is_behind_default: bool) -> None:
    """Pixels in 100,000 chunks of different sizes are those of the same image in one."""
    data, count = png_in_pieces(noise(300), varied(5), is_behind_default=is_behind_default)
    assert 65_536 < count < MAX_CHUNKS
    assert np.array_equal(pixels(data), pixels(encode(noise(300), "PNG")))


def test_runs_end_where_another_chunk_begins() -> None:
    """Behind many equal chunks the next ones are read as ever: of another size or kind, with a transparent colour."""
    image = odd.picture()
    plain = encode(image, "PNG")
    private = odd.png_chunk(b"prVt", b"ab")
    transparent = odd.png_chunk(b"tRNS", struct.pack(">3H", *image.getpixel((0, 0))))
    for front in (private * 33, private * 100, private * 200_000, private * 5000 + odd.png_chunk(b"prVt", b"abc")):
        expected = plain[:33] + transparent + plain[33:]
        assert np.array_equal(pixels(plain[:33] + front + transparent + front + plain[33:]), pixels(expected))


def test_over_the_limit_a_png_is_too_complex() -> None:
    """What is walked has a bound, and the error says which, not that the file is damaged."""
    sizes = b"".join(odd.png_chunk(b"prVt", bytes(index % 3)) for index in range(MAX_CHUNKS + 1))
    plain = encode(odd.picture(), "PNG")
    with pytest.raises(ImageTooComplex, match=f"over {MAX_CHUNKS:,} PNG chunks"):
        pixels(plain[:33] + sizes + plain[33:])


def gif_with(in_front: bytes) -> tuple[bytes, bytes]:
    """A GIF, and the same with something in front of its first frame."""
    whole = odd.gif_of(odd.SIZE, (0, 0), odd.picture().quantize(64))
    at = 13 + (6 << (whole[10] & 7))
    return whole, whole[:at] + in_front + whole[at:]


def test_a_gif_with_blocks_of_all_sizes_is_shown() -> None:
    """A comment of 500,000 irregular blocks, more than the XMP of any file has, hides no frame."""
    source = random.Random(3)
    blocks = b"".join(bytes([size]) + bytes(size) for size in (source.randint(1, 12) for _ in range(500_000)))
    plain, data = gif_with(b"\x21\xfe" + blocks + b"\0")
    assert np.array_equal(pixels(data), pixels(plain))


@pytest.mark.parametrize(
    "in_front",
    [b"\x21\xfe" + b"\1a\2bc" * (MAX_BLOCKS // 2 + 1) + b"\0", b"\x21\xfe\0" * (MAX_EXTENSIONS + 1)],
    ids=["blocks", "extensions"],
)
def test_over_the_limits_a_gif_is_too_complex(in_front: bytes) -> None:
    """What is walked has a bound, and the error says which, not that the file is damaged."""
    _, data = gif_with(in_front)
    with pytest.raises(ImageTooComplex, match=f"over {MAX_BLOCKS:,} GIF blocks or {MAX_EXTENSIONS:,} extensions"):
        pixels(data)
