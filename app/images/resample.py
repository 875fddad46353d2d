"""Resizes, equal to Pillow's bit for bit, for the cost of the part that is wanted.

Pillow resizes all of an image, of which a crop then throws a third or more away, and one number at a time. Its `box`
would resize a part, but rounds where it begins to single precision, and so gives other weights. Here the weights of the
whole resize, or of a `box`, are asked of Pillow itself, and `resample.c` does the sums with them.
"""

from __future__ import annotations

import logging
import math
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from ..types import Pixels
from .kernel import Axis, Kernel, open_kernel

logger = logging.getLogger(__name__)

Resampling = Image.Resampling
# Half-widths of the filters in output pixels, as Pillow's src/libImaging/Resample.c defines them.
SUPPORT = {
    Resampling.NEAREST: 0.5,
    Resampling.BOX: 0.5,
    Resampling.BILINEAR: 1.0,
    Resampling.HAMMING: 1.0,
    Resampling.BICUBIC: 2.0,
    Resampling.LANCZOS: 3.0,
}
# Nearest is no sum of neighbours: Pillow picks one (src/libImaging/Geometry.c).
_SUMS = frozenset(SUPPORT) - {Resampling.NEAREST}
# What stands for 1 in the sums over bytes there (PRECISION_BITS).
_ONE = 1 << 22
# Of each direction of each size that was met lately: some kB each, 400 at the most.
_REMEMBERED = 64


def resized_part(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], resampling: Resampling
) -> Pixels | None:
    """`image.resize(size, resampling).crop(box)` of an RGB image: `(height, width, 3)` uint8 of `box`.

    None where Pillow has to do it: there is no compiled kernel, nothing is to be resized, the box reaches outside, or
    the filter or the order of its passes is another.
    """
    left, top, right, bottom = box
    if image.size == size or left < 0 or top < 0 or right > size[0] or bottom > size[1]:
        return None
    return _resampled(image, size, (0, 0, *image.size), box, resampling)


def resized_window(
    image: Image.Image, size: tuple[int, int], window: tuple[float, float, float, float], resampling: Resampling
) -> Pixels | None:
    """`image.resize(size, resampling, box=window)` of an RGB image: `(height, width, 3)` uint8. None as above."""
    return _resampled(image, size, window, (0, 0, *size), resampling)


def _resampled(
    image: Image.Image,
    size: tuple[int, int],
    window: tuple[float, float, float, float],
    box: tuple[int, int, int, int],
    resampling: Resampling,
) -> Pixels | None:
    kernel = usable_kernel()
    if kernel is None or image.mode != "RGB" or resampling not in _SUMS or not _rows_first(image.size, size):
        return None
    x = axis_of(image.width, (window[0], window[2]), size[0], box[0], box[2], resampling)
    y = axis_of(image.height, (window[1], window[3]), size[1], box[1], box[3], resampling)
    return None if x is None or y is None else kernel.resample(image, x, y)


@lru_cache(maxsize=_REMEMBERED)
def axis_of(
    source: int, window: tuple[float, float], resized: int, first: int, end: int, resampling: Resampling
) -> Axis | None:
    """The weights by which Pillow makes pixels `first` to `end` of `resized` from a window of `source` pixels.

    None where the source is too small to ask. The weights are read off images of whole numbers, which Pillow resizes
    with those that it rounds to 2⁻²² for bytes: row r holds 1 in every n-th pixel from the r-th on, so that row r of
    the result is each pixel's weight of the one among those that its filter reaches, which spans fewer than n.
    """
    count = end - first
    if source == resized and window == (0, source):
        return Axis(source, np.arange(first, end, dtype=np.int32), np.full((count, 1), _ONE, np.int32))
    scale = (window[1] - window[0]) / resized
    reach = SUPPORT[resampling] * max(scale, 1.0)
    period = 2 * math.ceil(reach) + 3
    if source < period:
        return None
    columns = np.arange(source)
    probe = np.zeros((period, source), np.int32)
    probe[columns % period, columns] = _ONE
    box = (window[0], 0, window[1], period)
    answers = np.asarray(Image.fromarray(probe).resize((resized, period), resampling, box))[:, first:end]
    # All that a filter reaches lies within `period` pixels from here.
    origins = np.floor(window[0] + (np.arange(first, end) + 0.5) * scale - reach).astype(np.int64) - 1
    reached = origins[:, None] + np.arange(period)
    weights = answers[reached % period, np.arange(count)[:, None]]
    used = weights != 0
    ends = origins + period - used[:, ::-1].argmax(axis=1)
    # A weight can be 0 within the filter: starts must not fall all the same.
    starts = np.minimum.accumulate((origins + used.argmax(axis=1))[::-1])[::-1]
    taps = int((ends - starts).max())
    if source < taps:
        return None
    starts = np.minimum(starts, source - taps)
    at = starts[:, None] + np.arange(taps) - origins[:, None]
    inside = (at >= 0) & (at < period)
    kept = np.where(inside, np.take_along_axis(weights, at.clip(0, period - 1), axis=1), 0)
    return Axis(source, starts.astype(np.int32), np.ascontiguousarray(kept, np.int32))


@cache
def usable_kernel() -> Kernel | None:
    """The compiled kernel, once it gave Pillow's own pixels; None where there is none."""
    kernel = open_kernel()
    if kernel is None or equals_pillow(kernel):
        return kernel
    logger.warning("The compiled resize does not give this Pillow's pixels: Pillow resizes images, more slowly.")
    return None


def equals_pillow(kernel: Kernel) -> bool:
    """Whether `kernel` gives Pillow's pixels of a few small images of noise, made smaller and larger."""
    noise = np.random.default_rng(0).integers(0, 256, (53, 67, 3), np.uint8)
    image = Image.fromarray(noise)
    for resampling in _SUMS:
        for width, height in ((40, 31), (67, 31), (90, 80)):
            x = axis_of(image.width, (0, image.width), width, 3, width - 2, resampling)
            y = axis_of(image.height, (0, image.height), height, 2, height, resampling)
            if x is None or y is None:
                return False
            ours = kernel.resample(image, x, y)
            theirs = np.asarray(image.resize((width, height), resampling))[2:, 3 : width - 2]
            if ours is None or not np.array_equal(ours, theirs):
                return False
    return True


def _rows_first(source: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether every Pillow goes along the rows first.

    From 13 on it goes down the columns first where the height becomes smaller by more than twice of what the width
    does, in pixels (src/libImaging/Resample.c, `horizontal_first`). The order shows: each pass rounds to a byte.
    """
    shorter = source[1] - resized[1]
    return shorter <= 0 or shorter <= 2 * (source[0] - resized[0])
