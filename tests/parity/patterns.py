"""Weights that compress and discriminate, and the photos they are tried on.

Each tensor repeats a short random pattern, so that a 100 MB checkpoint packs into some hundred kilobytes. The last
batch normalisation of each block has a small gamma and the classifier a small deviation: otherwise random weights give
logits in the thousands, among which a wrong stride or padding would not show.

Needs numpy, Pillow and scikit-image alone: the frameworks' own environments use it too.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIXTURES = Path(__file__).parent / "fixtures"
_PERIOD = 509  # a prime, so that no axis of a kernel is a multiple of it


def tiled(seed: int, shape: tuple[int, ...], draw: str, low: float, high: float) -> NDArray[np.float32]:
    """A tensor of `shape` that repeats `_PERIOD` draws: "normal" (mean `low`, deviation `high`) or "uniform"."""
    generator = np.random.default_rng(seed)
    pattern = (generator.normal if draw == "normal" else generator.uniform)(low, high, _PERIOD).astype(np.float32)
    return np.resize(pattern, prod(shape)).reshape(shape)


def kernel(seed: int, shape: tuple[int, ...], fan_out: int) -> NDArray[np.float32]:
    """A convolution's kernel, scaled as He et al. (2015) initialise it."""
    return tiled(seed, shape, "normal", 0, float(np.sqrt(2 / fan_out)))


def normalisation(seed: int, channels: int, is_last: bool) -> dict[str, NDArray[np.float32]]:
    """gamma, beta, mean and variance of a batch normalisation."""
    gamma = (0.05, 0.4) if is_last else (0.8, 1.2)
    return {
        "gamma": tiled(seed, (channels,), "uniform", *gamma),
        "beta": tiled(seed + 1, (channels,), "normal", 0, 0.1),
        "mean": tiled(seed + 2, (channels,), "normal", 0, 0.1),
        "variance": tiled(seed + 3, (channels,), "uniform", 0.5, 1.5),
    }


def pixels() -> NDArray[np.uint8]:
    """`(3, 224, 224, 3)` uint8: the middles of three photos."""
    from skimage import data

    photos: list[Any] = [data.chelsea(), data.coffee(), data.astronaut()]
    return np.stack([photo[photo.shape[0] // 2 - 112 :, photo.shape[1] // 2 - 112 :][:224, :224] for photo in photos])


def inputs() -> NDArray[np.float32]:
    """Those photos, normalised as ImageNet's are, in float32."""
    mean = np.array([0.485, 0.456, 0.406])
    deviation = np.array([0.229, 0.224, 0.225])
    return ((pixels() / 255 - mean) / deviation).astype(np.float32)


def photographs() -> dict[str, Any]:
    """Photos whose sizes leave an odd number of pixels around a centre crop, as `(H, W, 3)` uint8."""
    from skimage import data

    return {"cat": data.chelsea(), "cup": data.coffee()[:, :547], "portrait": data.astronaut()[:, 100:401]}
