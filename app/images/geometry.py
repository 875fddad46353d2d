"""Resize and centre crop, equal to torchvision's pixel for pixel, with bounded memory for any aspect ratio."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ..types import Interpolation, Pixels, Preprocessing
from .resample import SUPPORT, resized_part
from .torchvision_resize import torchvision_part

FILTERS = {each: Image.Resampling[each.name] for each in Interpolation}
# Pillow holds an RGB pixel in 4 bytes.
_MAX_INTERMEDIATE_PIXELS = 16 * 1024 * 1024 // 4

Size = tuple[int, int]
"""Width and height."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""
Window = tuple[float, float, float, float]
"""The same, between pixels."""


def cropped_pixels(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """The pixels of `resize_and_crop` of an RGB image: `(height, width, 3)` uint8. Of a photo only what is shown is
    resized, by compiled code where there is some.
    """
    resized, box = resized_and_crop_box(image.size, preprocessing)
    if preprocessing.resizer != "pillow":
        is_smooth = preprocessing.resizer == "torchvision"
        return torchvision_part(image, resized, box, preprocessing.interpolation, is_smooth)
    pixels = resized_part(image, resized, box, FILTERS[preprocessing.interpolation]) if _is_short(resized) else None
    return np.asarray(resize_and_crop(image, preprocessing)) if pixels is None else pixels


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The centre crop of `image` after its short side was resized: size `preprocessing.crop`, mode kept.

    Photos take the road of torchvision's `Resize` and `CenterCrop` and equal it exactly. Where that would build an
    intermediate of over 16 MB (a side ratio of about 60 and more: a 16384×1 image would become 4,194,304×256), the
    part that the crop shows is cut out of the source first.
    """
    if preprocessing.resizer != "pillow":
        return Image.fromarray(cropped_pixels(image, preprocessing))
    (width, height), box = resized_and_crop_box(image.size, preprocessing)
    # Pillow's first pass, width × source rows, is never larger than both the source and the result.
    if _is_short((width, height)):
        resized = (
            image
            if image.size == (width, height)
            else image.resize((width, height), FILTERS[preprocessing.interpolation])
        )
        return resized if box == (0, 0, width, height) else resized.crop(box)
    return _resize_window(image, (width, height), box, preprocessing.interpolation)


def resized_and_crop_box(size: Size, preprocessing: Preprocessing) -> tuple[Size, Box]:
    """What an upright image of `size` is resized to, and what is cut out of that.

    The box is partly outside where the crop is larger than the resized image; what is outside is black (torchvision).
    """
    crop_height, crop_width = preprocessing.crop
    short = preprocessing.resize_short_side
    if not preprocessing.is_resized:
        width, height = size
    elif short is not None:
        width, height = _resized_size(size, short)
    else:
        height, width = preprocessing.squash or preprocessing.crop
    offset = _floor_offset if preprocessing.floor_crop else _crop_offset
    left, top = offset(width, crop_width), offset(height, crop_height)
    return (width, height), (left, top, left + crop_width, top + crop_height)


def in_source(box: Box, resized: Size, source: Size) -> Window:
    """The part of a `source` that becomes `box` when it is resized to `resized`."""
    scale_x, scale_y = source[0] / resized[0], source[1] / resized[1]
    return box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y


def visible_part(box: Box, resized: Size) -> Box:
    """Of a box that is partly outside, the part that is not."""
    return max(box[0], 0), max(box[1], 0), min(box[2], resized[0]), min(box[3], resized[1])


def within(shown: Image.Image, visible: Box, box: Box) -> Image.Image:
    """The whole of `box`, of whose `visible` part `shown` is the image: the rest is black."""
    if visible == box:
        return shown
    left, top = visible[:2]
    return shown.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))


def _is_short(resized: Size) -> bool:
    """Whether the whole of it may be an intermediate."""
    return resized[0] * resized[1] <= _MAX_INTERMEDIATE_PIXELS


def _resized_size(size: Size, short: int) -> Size:
    """Width and height after the short side became `short`; the long side is cut to a whole pixel (torchvision)."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _crop_offset(side: int, crop: int) -> int:
    """Where a centred window of `crop` begins, rounded half to even (torchvision's `center_crop`)."""
    return round((side - crop) / 2)


def _floor_offset(side: int, crop: int) -> int:
    """The same, rounded down (Hugging Face's `center_crop`)."""
    return (side - crop) // 2


def _resize_window(image: Image.Image, size: Size, box: Box, interpolation: Interpolation) -> Image.Image:
    """The pixels of `box` in `image.resize(size)`, computed from the source pixels that they depend on alone."""
    scale_x, scale_y = image.width / size[0], image.height / size[1]
    visible = visible_part(box, size)
    window = in_source(visible, size, image.size)
    # A filter reaches its half-width beyond the window: output pixels where it shrinks, source pixels where it grows.
    reach_x = math.ceil(SUPPORT[FILTERS[interpolation]] * max(scale_x, 1.0)) + 1
    reach_y = math.ceil(SUPPORT[FILTERS[interpolation]] * max(scale_y, 1.0)) + 1
    left, top = max(0, math.floor(window[0]) - reach_x), max(0, math.floor(window[1]) - reach_y)
    right = min(image.width, math.ceil(window[2]) + reach_x)
    bottom = min(image.height, math.ceil(window[3]) + reach_y)
    source = image.crop((left, top, right, bottom))
    shown = source.resize(
        (visible[2] - visible[0], visible[3] - visible[1]),
        FILTERS[interpolation],
        box=(
            max(0.0, window[0] - left),
            max(0.0, window[1] - top),
            min(float(source.width), window[2] - left),
            min(float(source.height), window[3] - top),
        ),
    )
    return within(shown, visible, box)
