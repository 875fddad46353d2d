"""The images that are sent: a user's photos, scikit-image's photos, or synthetic pictures."""

from __future__ import annotations

import importlib
import io
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ServiceError, SettingError
from ..types import Pixels

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
_MOST = 200
# JPEGs of this size and quality have 60 to 100 kB, as ImageNet's photos do.
_SIZE, _QUALITY = (500, 375), 95
_CARRIED = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
_SYNTHETIC = 8


@dataclass(frozen=True, slots=True)
class Photos:
    """Encoded images and their source."""

    source: str
    bodies: tuple[bytes, ...]
    skipped: tuple[str, ...] = ()
    """Files that the service would refuse, with the reason."""


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    source: str
    count: int
    smallest_bytes: int
    median_bytes: float
    mean_bytes: float
    largest_bytes: int


def facts_of(photos: Photos) -> PhotoFacts:
    sizes = [len(body) for body in photos.bodies]
    return PhotoFacts(
        photos.source, len(sizes), min(sizes), statistics.median(sizes), statistics.fmean(sizes), max(sizes)
    )


def find_photos(folder: Path | None, decode: Callable[[bytes], Pixels]) -> Photos:
    """The first 200 images in `folder`, by name; without one, scikit-image's photos or synthetic pictures. Blocks.

    Raises `SettingError` for a folder without an image that `decode` accepts.
    """
    if folder is None:
        return _carried() or _synthetic()
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.is_dir())
    except OSError as error:
        raise SettingError(f"--photos: {folder} cannot be read: {error.strerror}.") from None
    good: list[bytes] = []
    skipped: list[str] = []
    for path in paths[:_MOST]:
        try:
            body = path.read_bytes()
            decode(body)
        except OSError as error:
            skipped.append(f"{path.name}: it cannot be read: {error.strerror}.")
        except ServiceError as refused:
            skipped.append(f"{path.name}: {refused.detail}")
        else:
            good.append(body)
    if not good:
        why = f" The first: {skipped[0]}" if skipped else f" It has no {', '.join(sorted(_SUFFIXES))}."
        raise SettingError(f"--photos: {folder} holds no image that can be sent.{why}")
    return Photos(f"{len(good)} files of {folder.resolve().name}", tuple(good), tuple(skipped))


def smallest_image(padded_to_bytes: int) -> bytes:
    """A BMP of one pixel, followed by bytes that no decoder reads: its decoding is free, its size is a photo's."""
    return encoded(Image.new("RGB", (1, 1), (120, 130, 140)), "BMP").ljust(padded_to_bytes, b"\0")


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, image_format, **options)
    return target.getvalue()


def as_sent(image: Image.Image, quality: int = _QUALITY) -> bytes:
    """A JPEG of the size of ImageNet's photos."""
    return encoded(image.resize(_SIZE, Image.Resampling.LANCZOS), quality=quality)


def carried_pictures() -> list[Image.Image]:
    """The photos in the package scikit-image, at their own sizes. Raises `ImportError` without it."""
    data = importlib.import_module("skimage.data")
    return [Image.fromarray(getattr(data, name)()).convert("RGB") for name in _CARRIED]


def _carried() -> Photos | None:
    try:
        images = carried_pictures()
    except ImportError:
        return None
    source = f"{len(images)} photos that scikit-image carries, at {_SIZE[0]}×{_SIZE[1]}"
    return Photos(source, tuple(as_sent(image) for image in images))


def _synthetic() -> Photos:
    source = f"{_SYNTHETIC} synthetic pictures of {_SIZE[0]}×{_SIZE[1]}: no photos (give yours with --photos)"
    return Photos(source, tuple(as_sent(synthetic_picture(seed)) for seed in range(_SYNTHETIC)))


def synthetic_picture(seed: int) -> Image.Image:
    """Noise whose amplitude falls with its frequency, as in photos: a JPEG of it costs about as much as a photo's."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((_SIZE[1], _SIZE[0], 3), np.float32)
    for octave in range(2, 9):
        coarse = generator.integers(0, 256, (2**octave * 3 // 4, 2**octave, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize(_SIZE, Image.Resampling.BICUBIC)
        picture += (np.asarray(fine, np.float32) - 128) * 0.75 ** (octave - 2)
    return Image.fromarray(np.clip(picture * 0.4 + 128, 0, 255).astype(np.uint8))
