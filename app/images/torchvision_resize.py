"""Resizes equal to torchvision's of a uint8 tensor bit for bit, without torch.

torch (aten/src/ATen/native/cpu/UpSampleKernel.cpp) goes along the rows and then down the columns, and rounds to a byte
after each. Weights are whole numbers of 2⁻ᵖ, with the largest p at which those of one direction fit 16 bits. As numbers
of 2⁻²² they are the same, so that `resample.c` does these sums too. Where torch has neither AVX2 nor an
ARM processor, torchvision resizes bilinearly in floating point instead, a level apart here and there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import Interpolation, Pixels
from .kernel import Axis
from .resample import usable_kernel

Floats = NDArray[np.float64]

_BITS = 22
_HALF = 1 << (_BITS - 1)
_ONE = 1 << _BITS
_REMEMBERED = 64
# Of a result whose height and width together are at most this, torch picks the nearest pixels by another kernel.
_SMALL = 128
# Of a longer side only the weights that the crop needs are computed: p could then be another.
_MAX_COMPUTED = 1 << 16
# Of the sums without a compiled kernel: pixels of the result, and values of the source.
_AT_A_TIME = 16
_MAX_STEP_VALUES = 1 << 20


def torchvision_part(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    interpolation: Interpolation,
    smooth: bool,
) -> Pixels:
    """Of an RGB image resized to `size`: `(height, width, 3)` uint8 of `box`, black where that reaches outside.

    `smooth` is torchvision's `antialias`.
    """
    left, top, right, bottom = box
    inside = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
    is_small = sum(size) <= _SMALL
    x = _axis(image.width, size[0], inside[0], inside[2], interpolation, smooth, is_small)
    y = _axis(image.height, size[1], inside[1], inside[3], interpolation, smooth, is_small)
    kernel = usable_kernel()
    shown = None if kernel is None else kernel.resample(image, x, y)
    if shown is None:
        shown = _resampled(image, x, y)
    if inside == box:
        return shown
    pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
    pixels[inside[1] - top : inside[3] - top, inside[0] - left : inside[2] - left] = shown
    return pixels


@lru_cache(maxsize=_REMEMBERED)
def _axis(
    source: int, resized: int, first: int, end: int, interpolation: Interpolation, smooth: bool, is_small: bool
) -> Axis:
    """The weights by which torchvision makes pixels `first` to `end` of `resized` from `source` pixels."""
    if source == resized:
        return Axis(source, np.arange(first, end, dtype=np.int32), np.full((end - first, 1), _ONE, np.int32))
    computed = range(resized) if resized <= _MAX_COMPUTED else range(first, end)
    if interpolation is Interpolation.NEAREST:
        starts, weights, largest = _nearest(source, resized, computed, is_small), np.ones((len(computed), 1)), 1.0
    elif smooth:
        starts, weights, largest = _smooth(source, resized, computed, *_SMOOTH[interpolation])
    else:
        starts, weights, largest = _plain(source, resized, computed, *_PLAIN[interpolation])
    precision = _precision(largest)
    scaled = weights * (1 << precision)
    whole = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32) << (_BITS - precision)
    wanted = slice(first - computed.start, end - computed.start)
    return _within(source, starts[wanted], whole[wanted])


def _nearest(source: int, resized: int, computed: range, is_small: bool) -> NDArray[np.int64]:
    """The pixel that each one is, by nearest-exact: in single precision, as torch rounds it."""
    scale = np.float32(source) / np.float32(resized)
    centres = np.array(computed, np.float32) + np.float32(0.5)
    positions: NDArray[np.float32] = centres * scale
    if not is_small:
        # torch's general kernel subtracts half a pixel, fused with the product (FMA), and adds it again.
        lower = (centres.astype(np.float64) * np.float64(scale) - 0.5).astype(np.float32)
        positions = np.maximum(lower, np.float32(0)) + np.float32(0.5)
    nearest: NDArray[np.int64] = np.minimum(np.floor(positions).astype(np.int64), source - 1)
    return nearest


def _smooth(
    source: int, resized: int, computed: range, weight: Callable[[Floats], Floats], reach: float
) -> tuple[NDArray[np.int64], Floats, float]:
    """First pixels, weights and the largest of these with `antialias`: filters are as wide as a pixel of the result."""
    scale = source / resized
    support = reach * max(scale, 1.0)
    taps = math.ceil(support) * 2 + 1
    centres = scale * (np.arange(computed.start, computed.stop) + 0.5)
    starts = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    counts = (np.minimum((centres + support + 0.5).astype(np.int64), source) - starts).clip(0, taps)
    at = np.arange(min(taps, source))
    weights = weight((at + starts[:, None] - centres[:, None] + 0.5) * (1.0 / max(scale, 1.0)))
    weights = np.where(at < counts[:, None], weights, 0.0)
    total = np.zeros(len(weights))
    for column in weights.T:  # in torch's order
        total += column
    weights /= np.where(total == 0, 1.0, total)[:, None]
    return starts, weights, float(weights.max())


def _plain(
    source: int, resized: int, computed: range, weight: Callable[[Floats], Floats], taps: int
) -> tuple[NDArray[np.int64], Floats, float]:
    """The same without: of a pixel's neighbours, `taps` of them, however much smaller the image becomes."""
    positions = source / resized * (np.arange(computed.start, computed.stop) + 0.5) - 0.5
    if taps == 2:
        positions = np.maximum(positions, 0)
    nearest = np.minimum(np.floor(positions).astype(np.int64), source - 1)
    fraction = (positions - nearest).clip(0, 1)
    at = np.arange(taps)
    of_each = weight(at - (taps // 2 - 1) - fraction[:, None])
    lowest = nearest - taps // 2 + 1
    starts = lowest.clip(0, max(source - taps, 0))
    weights = np.zeros((len(starts), min(taps, source)))
    # A neighbour outside is the pixel at the edge.
    columns = (lowest[:, None] + at).clip(0, source - 1) - starts[:, None]
    largest = 0.0
    for tap in range(taps):
        weights[np.arange(len(starts)), columns[:, tap]] += of_each[:, tap]
        # torch sees that of a sum at the edge that is not complete yet, too.
        largest = max(largest, float(weights.max()))
    return starts, weights, largest


def _precision(largest: float) -> int:
    precision = 0
    while precision < _BITS and int(0.5 + max(largest, 0.0) * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    return precision


def _within(source: int, starts: NDArray[np.int64], weights: NDArray[np.int32]) -> Axis:
    """As an axis, which reads no pixel outside and has no column of zeros at its end."""
    taps = max(int(np.flatnonzero(weights.any(axis=0)).max(initial=0)) + 1, 1)
    inside = np.minimum(starts, source - taps)
    at = np.arange(taps) - (starts - inside)[:, None]
    kept = np.where(at >= 0, np.take_along_axis(weights, at.clip(0), axis=1), 0)
    return Axis(source, inside.astype(np.int32), np.ascontiguousarray(kept, np.int32))


def _resampled(image: Image.Image, x: Axis, y: Axis) -> Pixels:
    """What the compiled kernel computes; the image is read some rows at a time."""
    first, end = int(y.starts[0]), int(y.starts[-1]) + y.weights.shape[1]
    rows = np.empty((end - first, len(x.starts), 3), np.uint8)
    step = max(_MAX_STEP_VALUES // image.width, 1)
    for top in range(first, end, step):
        bottom = min(top + step, end)
        strip = np.asarray(image.crop((0, top, image.width, bottom)))
        rows[top - first : bottom - first] = _sums(strip, x, 1)
    return _sums(rows, replace(y, source=end - first, starts=y.starts - first), 0)


def _sums(pixels: Pixels, axis: Axis, along: int) -> Pixels:
    """The weighted sums in one direction of `(height, width, 3)`, some at a time, of the pixels that these need.

    In double precision, in which they are exact.
    """
    source = np.moveaxis(pixels, along, 0)
    count, taps = axis.weights.shape
    result = np.empty((count, *source.shape[1:]), np.uint8)
    for first in range(0, count, _AT_A_TIME):
        starts = axis.starts[first : first + _AT_A_TIME] - axis.starts[first]
        needed = int(starts[-1]) + taps
        weights = np.zeros((len(starts), needed))
        weights[np.arange(len(starts))[:, None], starts[:, None] + np.arange(taps)] = axis.weights[
            first : first + _AT_A_TIME
        ]
        step = max(_MAX_STEP_VALUES // (3 * needed), 1)
        for begin in range(0, source.shape[1], step):
            part = source[axis.starts[first] : axis.starts[first] + needed, begin : begin + step]
            sums = weights @ part.reshape(needed, -1).astype(np.float64) + _HALF
            levels = np.floor(sums / _ONE).clip(0, 255).reshape(len(starts), -1, 3)
            result[first : first + _AT_A_TIME, begin : begin + step] = levels
    return np.moveaxis(result, 0, along)


def _triangle(x: Floats) -> Floats:
    return np.asarray(np.maximum(1 - np.abs(x), 0))


def _cubic(x: Floats) -> Floats:
    a, x = -0.5, np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _sharper_cubic(x: Floats) -> Floats:
    a, x = -0.75, np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


_SMOOTH: dict[Interpolation, tuple[Callable[[Floats], Floats], float]] = {
    Interpolation.BILINEAR: (_triangle, 1.0),
    Interpolation.BICUBIC: (_cubic, 2.0),
    Interpolation.LANCZOS: (_lanczos, 3.0),
}
_PLAIN: dict[Interpolation, tuple[Callable[[Floats], Floats], int]] = {
    Interpolation.BILINEAR: (_triangle, 2),
    Interpolation.BICUBIC: (_sharper_cubic, 4),
}
