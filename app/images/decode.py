"""One encoded image → the model's input pixels, or a typed error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFile

from ..errors import ImageCorrupt, ImageTooLarge, ServiceError
from ..types import DecodeMode, Pixels, Preprocessing
from . import fast, libwebp
from .colour import on_canvas, to_rgb, without_colour
from .geometry import cropped_pixels
from .jpeg_end import check_is_whole
from .jpeg_scans import without_refinements
from .orientation import turn_upright
from .picture import PART_BYTES, DecodeLimits, Picture
from .resample import usable_kernel
from .structure import image_format, picture_of

__all__ = ["FORMATS", "DecodeLimits", "decode", "decode_for_each", "image_format"]

# Pillow tries the decoder of the picture's format and no other, whatever the client calls its file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# What a grey level of fewer bits becomes at 8, by Pillow's name of how it is stored.
_WIDENED = {"L;2": 85, "L;4": 17}
# Pillow's name of samples of 16 bits, lower half first. Of a PNG's, where the upper one is first, it takes the lower.
_LOWER = "RGB;16L"


def decode(data: bytes, preprocessing: Preprocessing, limits: DecodeLimits, mode: DecodeMode = "exact") -> Pixels:
    """Decode, turn upright, convert to RGB, resize and crop.

    Returns `(height, width, 3)` uint8 of `preprocessing.crop`: with `exact` the reference transform's pixels, with
    `fast` what `fast` says (of a resize that it comes not close to, the exact ones). Raises, in both,
    `UnsupportedImageFormat` (the bytes are none of the five formats), `ImageTooLarge` (by its header),
    `ImageTooComplex` (by its structure) or `ImageCorrupt`. Blocks: call it through a `Decoder`.
    """
    picture = picture_of(data, limits)
    with _pillow_errors(), _open(picture) as image:
        if mode == "fast" and fast.may_shrink(preprocessing):
            return _fast(image, picture, data, preprocessing)
        return cropped_pixels(_upright(image, picture), preprocessing)


def decode_for_each(data: bytes, preprocessings: Sequence[Preprocessing], limits: DecodeLimits) -> list[Pixels]:
    """What `decode` with `exact` returns for each of `preprocessings`, decoded once. Raises as it does."""
    picture = picture_of(data, limits)
    with _pillow_errors(), _open(picture) as image:
        upright = _upright(image, picture)
        return [cropped_pixels(upright, preprocessing) for preprocessing in preprocessings]


def _upright(image: ImageFile.ImageFile, picture: Picture) -> Image.Image:
    """All of the picture's pixels, in RGB and upright."""
    _load(image)
    if picture.is_unfinished:
        _check_is_whole(image, picture)
    return to_rgb(turn_upright(_shown(image, picture), picture.orientation))


def _fast(image: ImageFile.ImageFile, picture: Picture, data: bytes, preprocessing: Preprocessing) -> Pixels:
    if picture.kind != "jpeg":
        _load(image)
        return np.asarray(fast.upright_crop(_shown(image, picture), picture, 1, preprocessing))
    divisor = fast.shrink_jpeg(image, picture.orientation, preprocessing)
    if divisor == 1 and usable_kernel() is not None:
        return cropped_pixels(_upright(image, picture), preprocessing)  # costs less, and is exact
    if picture.is_unfinished:
        with _open(picture) as whole:
            _load(whole)
            _check_is_whole(whole, picture)
    elif divisor >= fast.REFINED_BELOW and "progressive" in image.info:
        image.close()
        refined = without_refinements(data, picture.scans_begin)
        image = _open(replace(picture, pieces=[picture.pieces[0], *refined]))
        fast.shrink_jpeg(image, picture.orientation, preprocessing)
    _load(image)
    return np.asarray(fast.upright_crop(image, picture, divisor, preprocessing))


def _shown(image: ImageFile.ImageFile, picture: Picture) -> Image.Image:
    """A loaded image on its canvas."""
    shown: Image.Image = image
    if picture.deep_transparent is not None:
        with _open(picture) as lower:
            lower.tile = [tile._replace(args=_LOWER) for tile in lower.tile]
            _load(lower)
            shown = without_colour(image, lower, picture.deep_transparent)
    return shown if picture.offset is None else on_canvas(to_rgb(shown), picture.size, picture.offset)


def _check_is_whole(image: Image.Image, picture: Picture) -> None:
    """Raises `ImageCorrupt` for a JPEG that ends before its pixels do."""
    with _open(picture, is_filled=True) as other:
        _load(other)
        check_is_whole(image, other)


def _open(picture: Picture, *, is_filled: bool = False) -> ImageFile.ImageFile:
    image: ImageFile.ImageFile
    if picture.kind == "webp" and (webp := libwebp.library()) is not None:
        image = libwebp.WebPImage(picture, webp)
    else:
        image = Image.open(picture.file(is_filled=is_filled), formats=(picture.kind.upper(),))
    left, top = picture.offset or (0, 0)
    # The limits were checked with the size that was read here. Pillow's reader of headers must have found the same.
    is_inside = left + image.width <= picture.size[0] and top + image.height <= picture.size[1]
    if not is_inside or (picture.offset is None and image.size != picture.size):
        raise ImageCorrupt()
    return image


def _load(image: ImageFile.ImageFile) -> None:
    _widen_transparency(image)
    image.decodermaxblock = PART_BYTES
    image.load()


def _widen_transparency(image: ImageFile.ImageFile) -> None:
    """Of a PNG's grey of 2 or 4 bits Pillow widens the pixels to 8, and not the level that is transparent."""
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int) and image.tile:
        image.info["transparency"] = level * _WIDENED.get(str(image.tile[0].args), 1)


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn whatever Pillow's decoders raise into `ImageCorrupt`.

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
        raise ImageCorrupt() from failure


# A warning of Pillow's about one client's file is not news for the service's log, and the size check above is stricter
# than Pillow's own. Set once: `warnings.catch_warnings` would not be safe across decode threads.
warnings.filterwarnings("ignore", module=r"PIL\..*")
