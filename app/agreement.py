"""Agreement of two networks on the same images: top-1 and top-5 agreement, and differences of probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .types import Activation

Probabilities = NDArray[np.float64]
"""`(N, classes)`."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one network with a reference, over some images."""

    images: int
    top1: float
    """Share of images with the same first class."""
    top5: float
    """Share of the reference's first five classes that are among the other's first five."""
    mean_difference: float
    """Of the probability of the reference's first class, the absolute difference, mean over the images."""
    worst_difference: float
    """The largest absolute difference in the probability of any class of any image."""

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"top-1 {self.top1:.1%}, top-5 {self.top5:.1%} on {self.images} images, probabilities "
            f"{self.mean_difference:.4f} apart on average and {self.worst_difference:.4f} at the most"
        )


def compare(reference: Probabilities, found: Probabilities) -> Agreement:
    """The agreement of `found` with `reference`, both `(N, classes)`; an answer that is not finite agrees with none."""
    is_finite = np.asarray(np.isfinite(found).all(axis=1))
    rows = np.arange(len(reference))
    best = reference.argmax(axis=1)
    count = min(5, reference.shape[1])
    expected, given = _first(reference, count), _first(np.where(is_finite[:, None], found, 0), count)
    common = [len(np.intersect1d(*pair)) / count for pair in zip(expected, given, strict=True)]
    differences = np.where(is_finite[:, None], np.abs(reference - found), 1.0)
    return Agreement(
        images=len(reference),
        top1=float(np.mean((best == given[:, 0]) & is_finite)),
        top5=float(np.mean(np.where(is_finite, common, 0.0))),
        mean_difference=float(differences[rows, best].mean()),
        worst_difference=float(differences.max()),
    )


def probabilities(scores: NDArray[np.float32], activation: Activation) -> Probabilities:
    """`(N, classes)` scores as probabilities; of one output both that of its class and that of its absence."""
    wide = scores.astype(np.float64)
    if activation == "sigmoid":
        # exp(-|x|) cannot overflow.
        small = np.exp(-np.abs(wide))
        wide = np.where(wide >= 0, 1 / (1 + small), small / (1 + small))
    if wide.shape[1] == 1:
        return np.concatenate([1 - wide, wide], axis=1)
    if activation != "softmax":
        return wide
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _first(values: Probabilities, count: int) -> NDArray[np.int64]:
    return np.asarray(np.argsort(-values, axis=1, kind="stable")[:, :count])
