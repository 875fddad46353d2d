"""scores → top-k predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import ModelOutputInvalid
from .labels import Labels
from .types import Prediction, ScoreKind, Scores


def rank(scores: Scores, kind: ScoreKind, labels: Labels, top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` most probable of `(classes,)` scores, best first; equal probabilities in the order of the class ids.

    Raises `ModelOutputInvalid` where a score is not finite: a NaN must fail, not rank.
    """
    if not np.isfinite(scores).all():
        raise ModelOutputInvalid()
    probabilities = _softmax(scores) if kind == "logits" else scores.astype(np.float64)
    top_k = min(top_k, len(probabilities))
    # Everything at or above the k-th largest, so that class ids and not the partition decide ties at the cut.
    threshold = np.partition(probabilities, -top_k)[-top_k]
    candidates = np.flatnonzero(probabilities >= threshold)
    best = candidates[np.argsort(-probabilities[candidates], kind="stable")][:top_k]
    return tuple(Prediction(int(index), labels[index], float(probabilities[index])) for index in best)


def _softmax(logits: Scores) -> NDArray[np.float64]:
    """exp(x - max) / Σ exp(x - max), in float64 so that the probabilities add up to 1."""
    exponentials = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(exponentials / exponentials.sum())
