"""One encoded image → the model's own pixels, or a typed error."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from ..errors import ImageCorrupt, ImageTooComplex, ImageTooLarge, ServiceError, UnsupportedImageFormat
from ..types import DecodeMode, Pixels, Preprocessing
from . import fast, jpeg_scans
from .colour import to_rgb
from .geometry import cropped_pixels
from .orientation import orientation_of, turn_upright
from .resample import usable_kernel

# Pillow tries these decoders and no other, whatever the client calls its file. MPO, a phone's JPEG with more pictures
# behind the first, opens through the JPEG plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_JPEG_FAMILY = frozenset({"JPEG", "MPO"})

# What a grey level of fewer bits becomes at 8, by Pillow's name of how it is stored.
_WIDENED = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What is refused from an image's header and markers, before any pixel is decoded."""

    max_pixels_jpeg: int
    max_pixels: int
    max_side: int
    max_jpeg_scans: int = 64
    max_jpeg_megapixel_scans: float = 1_000.0
    """Millions of pixels times scans: a scan goes over every pixel again."""

    @property
    def most_megapixels(self) -> float:
        """Of any format."""
        return max(self.max_pixels_jpeg, self.max_pixels) / 1e6


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits, mode: DecodeMode = "exact") -> Pixels:
    """Decode, turn upright, convert to RGB, resize and crop.

    Returns `(height, width, 3)` uint8 of `preprocessing.crop`: with `exact` the reference transform's pixels, with
    `fast` what `fast` says (of a resize that it comes not close to, the exact ones). Raises, in both,
    `UnsupportedImageFormat` (the bytes are none of the five formats), `ImageTooLarge` (by its header),
    `ImageTooComplex` (a JPEG of too many scans) or `ImageCorrupt`. Blocks: call it through a `Decoder`.
    """
    with opened(data, limits) as image:
        return (_fast if mode == "fast" and fast.may_shrink(preprocessing) else _exact)(image, data, preprocessing)


def decode_for_each(data: bytes, preprocessings: Sequence[Preprocessing], limits: DecodeLimits) -> list[Pixels]:
    """What `decode` with `exact` returns for each of `preprocessings`, decoded once. Raises as it does."""
    with opened(data, limits) as image:
        _load(image, data)
        upright = to_rgb(turn_upright(image, orientation_of(image)))
        return [cropped_pixels(upright, preprocessing) for preprocessing in preprocessings]


@contextmanager
def opened(data: bytes, limits: DecodeLimits) -> Iterator[ImageFile.ImageFile]:
    """The image, of which the header is read and no pixel yet, within the limits; what Pillow raises of it within is
    `ImageCorrupt`. Raises as `decode` does.
    """
    scans = _count_scans(data, limits)
    with _pillow_errors(ImageCorrupt), _open(data) as image:
        _check_size(image, limits)
        _check_cost(image, scans, limits)
        yield image


def _exact(image: ImageFile.ImageFile, data: bytes, preprocessing: Preprocessing) -> Pixels:
    _load(image, data)
    return _cropped(image, preprocessing)


def _cropped(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    return cropped_pixels(to_rgb(turn_upright(image, orientation_of(image))), preprocessing)


def _fast(image: ImageFile.ImageFile, data: bytes, preprocessing: Preprocessing) -> Pixels:
    stored = image.size
    divisor = fast.shrink_jpeg(image, preprocessing) if image.format in _JPEG_FAMILY else 1
    if divisor >= fast.REFINED_BELOW and "progressive" in image.info:
        data = jpeg_scans.without_refinements(data)
        image.close()
        image = _open(data)
        fast.shrink_jpeg(image, preprocessing)
    _load(image, data)
    if divisor == 1 and image.format in _JPEG_FAMILY and usable_kernel() is not None:
        return _cropped(image, preprocessing)  # costs less, and is exact
    return np.asarray(fast.upright_crop(image, stored, divisor, preprocessing))


def _load(image: ImageFile.ImageFile, data: bytes) -> None:
    """The pixels of the first frame; `load` stops there for GIF, APNG, animated WebP and MPO."""
    _widen_transparency(image)
    # In one piece: between two the interpreter lock is waited for.
    image.decodermaxblock = len(data)
    image.load()


def image_format(data: bytes) -> str | None:
    """The name of the supported format whose signature the first bytes are; None for any other."""
    if data.startswith(jpeg_scans.SIGNATURE):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0" else None


def _count_scans(data: bytes, limits: DecodeLimits) -> int:
    """0 for other formats. Before Pillow opens the file, because its own reader walks every segment too."""
    scans = jpeg_scans.count_scans(data, limits.max_jpeg_scans) if image_format(data) == "jpeg" else 0
    if scans > limits.max_jpeg_scans:
        raise ImageTooComplex(f"The image has more scans than the {limits.max_jpeg_scans} that this server decodes.")
    return scans


def _open(data: bytes) -> ImageFile.ImageFile:
    """The image's header, read by the decoder that its first bytes ask for."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise
    except Exception:
        # Pillow says UnidentifiedImageError of a foreign format and of one of ours with a broken header; of text that
        # begins with "BM", and of other near misses, whatever its header's reader met.
        raise (ImageCorrupt if image_format(data) else UnsupportedImageFormat)() from None


def _check_size(image: Image.Image, limits: DecodeLimits) -> None:
    width, height = image.size
    most = limits.max_pixels_jpeg if image.format in _JPEG_FAMILY else limits.max_pixels
    if width * height > most or max(width, height) > limits.max_side:
        raise ImageTooLarge(
            f"The image is {width}×{height}; this server decodes up to {most / 1e6:g} megapixels of this format "
            f"and sides of up to {limits.max_side} pixels."
        )


def _check_cost(image: Image.Image, scans: int, limits: DecodeLimits) -> None:
    width, height = image.size
    if width * height / 1e6 * scans > limits.max_jpeg_megapixel_scans:
        raise ImageTooComplex(
            f"The image is {width}×{height} in {scans} scans; megapixels times scans may be "
            f"{limits.max_jpeg_megapixel_scans:g} at the most."
        )


def _widen_transparency(image: ImageFile.ImageFile) -> None:
    """Of a PNG's grey of 2 or 4 bits Pillow widens the pixels to 8, and not the level that is transparent."""
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int) and image.tile:
        image.info["transparency"] = level * _WIDENED.get(str(image.tile[0].args), 1)


@contextmanager
def _pillow_errors(error: type[ServiceError]) -> Iterator[None]:
    """Turn whatever Pillow's decoders raise into `error`.

    They raise OSError, SyntaxError, ValueError, struct.error, NotImplementedError, EOFError and more, all of which mean
    one thing for one file: it cannot be decoded. Running out of memory is not the file's fault and passes through.
    """
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageTooLarge() from None
    except Exception as failure:
        raise error() from failure


# A warning of Pillow's about one client's file is not news for the service's log, and the size check above is stricter
# than Pillow's own. Set once: `warnings.catch_warnings` would not be safe across decode threads.
warnings.filterwarnings("ignore", module=r"PIL\..*")
