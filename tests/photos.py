"""Pictures that tests make, and what the null backend must say of each."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from app.backends import null_checkpoint
from app.backends.null import NullBackend
from app.images import DecodeLimits, decode

LIMITS = DecodeLimits(50_000_000, 25_000_000, 16_384)


def make_jpeg(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG of smooth noise that no other seed gives."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return encode(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


def encode(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format, **options)
    return target.getvalue()


def null_classes(image: bytes) -> tuple[int, int]:
    """The two best classes that the null backend answers with for an encoded image."""
    checkpoint = null_checkpoint()
    return NullBackend(checkpoint).classes_of(decode(image, checkpoint.preprocessing, LIMITS))
