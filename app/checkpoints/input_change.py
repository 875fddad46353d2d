"""Input changes in a network's own code (scaling, normalisation), combined with the preprocessing of the images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import CheckpointError
from ..layers import InputChange
from ..types import Preprocessing
from .base import Decision
from .presets import IMAGENET_MEAN, IMAGENET_STD

_TOLERANCE = 0.02
# Mean and deviation of known normalisations that are equal for all channels.
_SAME_FOR_ALL = ((0.5, 0.5), (0.0, 1.0))
# Plausible means and deviations of photos from 0 to 1.
_MEANS, _DEVIATIONS = (0.2, 0.75), (0.1, 0.45)


def behind_change(
    change: Decision[InputChange], given: Decision[Preprocessing], is_stated: bool, is_explicit: bool
) -> Decision[Preprocessing]:
    """The preprocessing as the network's body sees it: `given`, then the change by the file's own code.

    A change that is a known normalisation shows that the file takes plain images: only size and filter of `given`
    apply, unless the user states a mean, a deviation or a scale (`is_explicit`). With any other change, `given` is the
    input of the file. Raises `CheckpointError` if `given` is not stated (`is_stated`) either: the change alone does not
    show which input the file takes.
    """
    base = given.value
    for scale, unit in (("0 to 1", 1.0), ("0 to 255", 1 / 255)):
        value = change.value.behind(replace(base, mean=(0.0,) * 3, std=(unit,) * 3))
        if _is_normalisation(value, unit) and not is_explicit:
            source = f"{change.source}, which takes images from {scale} ({change.value.describe()})"
            return Decision(value, f"{source}; its size: {given.source}", given.is_assumed)
    if is_stated or is_explicit:
        source = f"{given.source}, then {change.source} ({change.value.describe()})"
        return Decision(change.value.behind(given.value), source, given.is_assumed)
    raise CheckpointError(
        f"{change.source[:1].upper()}{change.source[1:]} changes its input before the network "
        f"({change.value.describe()}), and nothing says what images it takes: from 0 to 1, from 0 to 255, or "
        f"normalised already. Set RESNET_PREPROCESSING to what you prepare them with; the change is made behind it."
    )


def _is_normalisation(value: Preprocessing, unit: float) -> bool:
    """Whether mean and deviation are typical of a normalisation of photos."""
    mean, std = np.array(value.mean), np.array(value.std)
    known = [(np.array(IMAGENET_MEAN), np.array(IMAGENET_STD))]
    if unit == 1.0:
        known += [(np.full(3, one), np.full(3, other)) for one, other in _SAME_FOR_ALL[:1]]
    else:
        known += [(np.full(3, one), np.full(3, other)) for one, other in _SAME_FOR_ALL]
    if any(
        np.allclose(mean, one, atol=_TOLERANCE) and np.allclose(std, other, atol=_TOLERANCE) for one, other in known
    ):
        return True
    is_photo = (mean > _MEANS[0]).all() and (mean < _MEANS[1]).all() and np.ptp(mean) > _TOLERANCE
    # Without a scaling (as in Caffe), the deviation is one level.
    is_deviation = ((std > _DEVIATIONS[0]) & (std < _DEVIATIONS[1])).all() or np.allclose(std * 255, 1, atol=1e-3)
    return bool(is_photo and is_deviation)
