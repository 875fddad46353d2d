"""One set of facts compared with another on the same photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agreement import Probabilities, probabilities
from ..types import Scores
from .alternatives import Alternative
from .facts import Facts
from .statistics import Interval, difference_interval, mcnemar, sign_flips

Truth = NDArray[np.bool_]
"""(N, classes): the classes that each photo shows, usually one."""

_LEAST = 1e-7
# The range of the temperatures' logarithms: temperatures from 0.05 to 20.
_COLDEST, _HOTTEST = -3.0, 3.0
_STEPS = 16
_GOLDEN = 0.6180339887498949
# If no probability of any photo differs by more, the answers count as equal.
_NO_DIFFERENCE = 0.005
_NOTHING = 1e-9
# The one-sided 1% point of the normal distribution.
_CLEARLY = 2.33


@dataclass(frozen=True, slots=True)
class Trial:
    """The comparison of an alternative with the base on the same photos."""

    alternative: Alternative
    photos: int
    right: int
    base_right: int
    gained: int
    """Photos that only the alternative has right."""
    lost: int
    """Photos that only the base has right."""
    truth_probability: float
    """Mean probability of the true class."""
    log_loss: float
    base_log_loss: float
    fitted_difference: float
    """Difference of the log losses, each at its best temperature: below 0 the alternative is better."""
    p_top1: float
    p_loss: float
    is_same: bool
    """Whether no probability differs enough to matter."""
    is_supported: bool
    """Whether no other figure speaks against it."""
    losses: NDArray[np.float64]
    """The loss of each photo, as the test compares it."""
    differences: NDArray[np.float64]
    """Their differences from the base's."""
    corrected_p: float = 1.0
    """Corrected for the number of alternatives tried and of looks taken."""

    @property
    def p(self) -> float:
        """The lower p-value of both tests, corrected for their number."""
        return min(1.0, 2 * min(self.p_top1, self.p_loss)) if self.is_supported else 1.0

    @property
    def difference(self) -> float:
        return (self.right - self.base_right) / max(1, self.photos)

    @property
    def is_worse(self) -> bool:
        """Whether it is clearly worse: more photos would hardly make it better."""
        deviation = float(np.std(self.differences)) / self.photos**0.5
        return self.gained <= self.lost and float(self.differences.mean()) > _CLEARLY * deviation

    @property
    def interval(self) -> Interval:
        """The 95% confidence interval of the difference of top-1."""
        return difference_interval(self.gained, self.lost, self.photos)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "setting": self.alternative.fact,
            "value": self.alternative.shown,
            "photos": self.photos,
            "top1": self.right / max(1, self.photos),
            "base_top1": self.base_right / max(1, self.photos),
            "difference": self.difference,
            "difference_interval": list(self.interval),
            "gained": self.gained,
            "lost": self.lost,
            "truth_probability": self.truth_probability,
            "log_loss": self.log_loss,
            "base_log_loss": self.base_log_loss,
            "fitted_log_loss_difference": self.fitted_difference,
            "p_top1": self.p_top1,
            "p_log_loss": self.p_loss,
            "p_corrected": self.corrected_p,
        }


def in_label_order(values: NDArray[Any], facts: Facts) -> NDArray[Any]:
    """(N, outputs) → (N, labels): the columns in the order of the checkpoint's own labels."""
    if facts.order is None:
        return values
    columns = np.empty(len(facts.order), np.int64)
    columns[list(facts.order)] = np.arange(len(facts.order))
    return values[:, columns]


def are_fractions(scores: Scores) -> bool:
    """Whether all scores could be probabilities."""
    return bool(scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6)


def probabilities_of(scores: Scores, facts: Facts) -> Probabilities:
    return in_label_order(probabilities(scores, facts.activation), facts)


@dataclass(frozen=True, slots=True)
class Reading:
    """The answers to photos under one set of facts, and their losses."""

    found: Probabilities
    truth: Truth
    losses: NDArray[np.float64]
    fitted: NDArray[np.float64]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        return np.asarray(self.truth[np.arange(len(self.found)), self.found.argmax(axis=1)])

    def held_out(self) -> Reading:
        """The photos from which no label order is derived."""
        return Reading(self.found[1::2], self.truth[1::2], self.losses[1::2], self.fitted[1::2])


def read_answers(scores: Scores, facts: Facts, truth: Truth) -> Reading:
    """The reading of `scores`; `truth` is of the same photos in the same order, at least one."""
    found = probabilities_of(scores, facts)
    return Reading(found, truth, log_losses(found, truth), fitted_losses(found, facts, truth))


def compare_readings(alternative: Alternative, reading: Reading, base: Reading) -> Trial:
    """Compare `alternative`, whose answers are `reading`, with `base` on the same photos."""
    if alternative.held_out:
        reading, base = reading.held_out(), base.held_out()
    is_right, was_right = reading.is_right, base.is_right
    gained, lost = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    mean_difference = float((reading.fitted - base.fitted).mean())
    # A fitted temperature can hide the effect of another activation: there the unfitted losses decide.
    is_reading = alternative.fact == "activation"
    losses = reading.losses if is_reading else reading.fitted
    differences = losses - (base.losses if is_reading else base.fitted)
    return Trial(
        alternative=alternative,
        photos=len(is_right),
        right=int(is_right.sum()),
        base_right=int(was_right.sum()),
        gained=gained,
        lost=lost,
        truth_probability=float(reading.found[reading.truth].mean()),
        log_loss=float(reading.losses.mean()),
        base_log_loss=float(base.losses.mean()),
        fitted_difference=mean_difference,
        p_top1=mcnemar(gained, lost),
        p_loss=sign_flips(differences),
        is_same=bool(np.abs(reading.found - base.found).max() < _NO_DIFFERENCE),
        is_supported=gained >= lost and (not is_reading or mean_difference <= _NOTHING),
        losses=losses,
        differences=differences,
    )


def log_losses(found: Probabilities, truth: Truth) -> NDArray[np.float64]:
    """The loss of each photo: -log of the probability of each class that it shows, and of 1 - p of all others, summed.

    It is a proper score for one label and for several, so that softmax and sigmoid can be compared.
    """
    given = np.clip(np.where(truth, found, 1 - found), _LEAST, 1.0)
    return np.asarray(-np.log(given).sum(axis=1))


def fitted_losses(found: Probabilities, facts: Facts, truth: Truth) -> NDArray[np.float64]:
    """`log_losses` after logits are divided by the one temperature that minimises their mean.

    (Guo et al., 2017.) Without it, any change that makes an overconfident network less confident would look better.
    """
    is_exclusive = facts.activation != "sigmoid" and bool(np.all(np.abs(found.sum(axis=1) - 1) < 1e-3))
    clipped = np.clip(found, 1e-12, 1.0)
    logits = np.log(clipped) if is_exclusive else np.log(clipped) - np.log(np.clip(1 - found, 1e-12, 1.0))

    def losses(temperature: float) -> NDArray[np.float64]:
        return log_losses(_cooled(logits, np.exp(temperature), is_exclusive), truth)

    low, high = _COLDEST, _HOTTEST
    inner, outer = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    inner_loss, outer_loss = losses(inner), losses(outer)
    for _ in range(_STEPS):
        if inner_loss.mean() <= outer_loss.mean():
            high, outer, outer_loss = outer, inner, inner_loss
            inner = high - _GOLDEN * (high - low)
            inner_loss = losses(inner)
        else:
            low, inner, inner_loss = inner, outer, outer_loss
            outer = low + _GOLDEN * (high - low)
            outer_loss = losses(outer)
    return inner_loss if inner_loss.mean() <= outer_loss.mean() else outer_loss


def _cooled(logits: NDArray[np.float64], temperature: float, is_exclusive: bool) -> Probabilities:
    scaled = logits / temperature
    if not is_exclusive:
        small = np.exp(-np.abs(scaled))
        return np.asarray(np.where(scaled >= 0, 1.0, small) / (1 + small))
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
