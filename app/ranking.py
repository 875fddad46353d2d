"""scores → top-k predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import ModelOutputInvalid
from .labels import Labels
from .types import Activation, Prediction, Scores

# Up to so many are looked for one by one: a fifth of what sorting or partitioning 1,000 takes, whatever ties there are.
_FEW = 10


def rank(scores: Scores, activation: Activation, labels: Labels, top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` most probable of `(classes,)` scores, best first; equal probabilities in the order of the class ids.

    One score with two labels is the probability of the second; the first has the rest.

    Raises `ModelOutputInvalid` where a score is not finite: a NaN must fail, not rank.
    """
    if not np.isfinite(scores).all():
        raise ModelOutputInvalid()
    probabilities = _ACTIVATIONS[activation](scores)
    if len(probabilities) == 1 and len(labels) == 2:
        probabilities = np.concatenate([1 - probabilities, probabilities])
    best = _best(probabilities, min(top_k, len(probabilities)))
    return tuple(Prediction(index, labels[index], float(probabilities[index])) for index in best)


def _softmax(logits: Scores) -> NDArray[np.float64]:
    """exp(x - max) / Σ exp(x - max), in float64 so that the probabilities add up to 1."""
    exponentials = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(exponentials / exponentials.sum())


def _sigmoid(logits: Scores) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), in float64, by exp(-|x|), which cannot overflow."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.asarray(np.where(logits >= 0, 1.0, small) / (1 + small))


def _none(probabilities: Scores) -> NDArray[np.float64]:
    return probabilities.astype(np.float64)


_ACTIVATIONS: dict[Activation, Callable[[Scores], NDArray[np.float64]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": _none,
}


def _best(probabilities: NDArray[np.float64], count: int) -> list[int]:
    """Indices of the `count` largest, in order; of equal ones the smallest index first."""
    if count > _FEW:
        return [int(index) for index in np.argsort(-probabilities, kind="stable")[:count]]
    left = probabilities.copy()
    best = []
    for _ in range(count):
        index = int(left.argmax())
        best.append(index)
        left[index] = -1.0
    return best
