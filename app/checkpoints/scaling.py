"""Check of a preprocessing's scale against the statistics of the network's first batch normalisation.

It stores the statistics of its convolution's outputs for training photos. Outputs for photo-like pictures, scaled as
the preprocessing states, must have a similar spread. On a trained network, the error was within 0.2 for the right
scaling, 0.7 for a similar convention (deviation 0.5 for 0.226), and 4.7 for levels of 0 to 255 in place of fractions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..preprocessing import Three
from ..types import Preprocessing
from .base import Weights
from .presets import PRESETS

SUSPICIOUS = 0.5
"""The limit of the error: a spread that is wrong by a factor of e^0.5, 1.65."""

_SIDE = 128
_PICTURES = 6
_PATCHES = 2000
# Names of the first convolution and its normalisation: torchvision's, and those of a deep stem.
_STEMS = (("conv1.weight", "bn1.running_var"), ("conv1.0.weight", "conv1.1.running_var"))
# Amplitudes of photos fall with frequency by about this power (Field, 1987, "Relations between the statistics of
# natural images and the response properties of cortical cells"). The colours' spread is ImageNet's; their common share
# was chosen to agree with real photos on a trained network.
_SPECTRUM = 1.2
_SPREAD = 0.22
_COMMON = 0.95
_IMAGENET_MEAN = (0.485, 0.456, 0.406)


def spread_error(weights: Weights, preprocessing: Preprocessing) -> float | None:
    """ln of the ratio of the inputs' spread to that of the training images: above 0 if the inputs spread more.

    None if the weights have no known stem.
    """
    for kernel_name, variance_name in _STEMS:
        kernel, stored = weights.get(kernel_name), weights.get(variance_name)
        if kernel is not None and stored is not None and kernel.ndim == 4 and kernel.shape[1] == 3:
            return _error(kernel.astype(np.float64), stored.astype(np.float64), preprocessing)
    return None


def is_scaling_unlikely(weights: Weights, preprocessing: Preprocessing) -> bool:
    """Whether the first batch normalisation was probably trained on inputs of another scaling."""
    error = spread_error(weights, preprocessing)
    return error is not None and abs(error) > SUSPICIOUS


def fitting_presets(weights: Weights) -> list[str]:
    """The presets with a scaling that agrees with the first batch normalisation."""

    @cache
    def error(mean: Three, std: Three, is_bgr: bool) -> float | None:
        normalised = replace(PRESETS["torchvision-v1"], mean=mean, std=std, is_bgr=is_bgr)
        return spread_error(weights, normalised)

    errors = {name: error(preset.mean, preset.std, preset.is_bgr) for name, preset in PRESETS.items()}
    return [name for name, error in errors.items() if error is not None and abs(error) < SUSPICIOUS]


def _error(kernel: NDArray[np.float64], stored: NDArray[np.float64], preprocessing: Preprocessing) -> float | None:
    inputs = _patches(kernel.shape[2])
    if preprocessing.is_bgr:
        inputs = inputs[..., ::-1]
    inputs = (inputs - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    answers = np.einsum("nhwc,kchw->nk", inputs, kernel, optimize=True).var(0)
    # Channels that died in training are left out.
    alive = (stored > 1e-8) & (answers > 1e-8)
    if not alive.any():
        return None
    return float(np.median(np.log(answers[alive] / stored[alive]))) / 2


@cache
def _patches(side: int) -> NDArray[np.float64]:
    """`(N, side, side, 3)` patches of photo-like pictures, 0 to 1."""
    generator = np.random.default_rng(0)
    pictures = np.stack([_picture(generator) for _ in range(_PICTURES)])
    which = generator.integers(0, _PICTURES, _PATCHES)
    tops, lefts = generator.integers(0, _SIDE - side, (2, _PATCHES))
    return np.stack([pictures[n, y : y + side, x : x + side] for n, y, x in zip(which, tops, lefts, strict=True)])


def _picture(generator: np.random.Generator) -> NDArray[np.float64]:
    """Noise with the spectrum, brightness and colours of a photo."""
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(_SIDE), np.fft.fftfreq(_SIDE)))
    frequencies[0, 0] = 1 / _SIDE

    def plane() -> NDArray[np.float64]:
        spectrum = np.fft.fft2(generator.normal(size=(_SIDE, _SIDE))) / frequencies**_SPECTRUM
        values = np.real(np.fft.ifft2(spectrum))
        return np.asarray((values - values.mean()) / values.std())

    common = plane()
    colours = np.stack([_COMMON * common + np.sqrt(1 - _COMMON**2) * plane() for _ in range(3)], -1)
    brightness = np.array(_IMAGENET_MEAN) + generator.normal(0, 0.12)
    return np.asarray(np.clip(brightness + _SPREAD * colours, 0, 1))
