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
"""(N, classes): which classes each photo shows, usually one."""

_LEAST = 1e-7
# Of the temperatures' logarithms: 0.05 to 20.
_COLDEST, _HOTTEST = -3.0, 3.0
_STEPS = 16
_GOLDEN = 0.6180339887498949
# Probabilities that differ by no more, for any class of any photo, are no other answers.
_NO_DIFFERENCE = 0.005
_NOTHING = 1e-9
# The one-sided 1% point of the normal distribution.
_CLEARLY = 2.33


@dataclass(frozen=True, slots=True)
class Trial:
    """What an alternative scores, and the base on the same photos."""

    alternative: Alternative
    photos: int
    right: int
    base_right: int
    gained: int
    """Photos that it alone has right."""
    lost: int
    """Photos that the base alone has right."""
    truth_probability: float
    """Mean probability of the true class."""
    log_loss: float
    base_log_loss: float
    fitted_difference: float
    """Of the log losses once each has the temperature that fits it best: below 0 it is better."""
    p_top1: float
    p_loss: float
    is_same: bool
    """Whether no probability of any photo differs by enough to matter."""
    is_supported: bool
    """Whether nothing else speaks against it."""
    losses: NDArray[np.float64]
    """Of each photo, as the test compares them."""
    differences: NDArray[np.float64]
    """Of them from the base's."""
    corrected_p: float = 1.0
    """For the number of alternatives tried and of looks taken."""

    @property
    def p(self) -> float:
        """Of both tests, corrected for being two."""
        return min(1.0, 2 * min(self.p_top1, self.p_loss)) if self.is_supported else 1.0

    @property
    def difference(self) -> float:
        return (self.right - self.base_right) / max(1, self.photos)

    @property
    def is_worse(self) -> bool:
        """Clearly: more photos would hardly make it better."""
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
    """Whether all of them could be probabilities."""
    return bool(scores.min() >= -1e-6 and scores.max() <= 1 + 1e-6)


def probabilities_of(scores: Scores, facts: Facts) -> Probabilities:
    return in_label_order(probabilities(scores, facts.activation), facts)


@dataclass(frozen=True, slots=True)
class Reading:
    """One set of facts' answers to photos, and how far each is from the truth."""

    found: Probabilities
    truth: Truth
    losses: NDArray[np.float64]
    fitted: NDArray[np.float64]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        return np.asarray(self.truth[np.arange(len(self.found)), self.found.argmax(axis=1)])

    def held_out(self) -> Reading:
        """The photos that a label order is not read off."""
        return Reading(self.found[1::2], self.truth[1::2], self.losses[1::2], self.fitted[1::2])


def read_answers(scores: Scores, facts: Facts, truth: Truth) -> Reading:
    """`scores` and `truth` are of the same photos in the same order, at least one."""
    found = probabilities_of(scores, facts)
    return Reading(found, truth, log_losses(found, truth), fitted_losses(found, facts, truth))


def compare_readings(alternative: Alternative, reading: Reading, base: Reading) -> Trial:
    """What `alternative`, whose answers are `reading`, has ahead of `base`, on the same photos."""
    if alternative.held_out:
        reading, base = reading.held_out(), base.held_out()
    is_right, was_right = reading.is_right, base.is_right
    gained, lost = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    mean_difference = float((reading.fitted - base.fitted).mean())
    # A temperature makes good what another activation is: there the losses as they are decide.
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
    """Of each photo: -log of what each class that it shows was given, and of what all others were not given, added up.

    It is proper for one label and for several, for softmax and for sigmoid, so that those can be compared.
    """
    given = np.clip(np.where(truth, found, 1 - found), _LEAST, 1.0)
    return np.asarray(-np.log(given).sum(axis=1))


def fitted_losses(found: Probabilities, facts: Facts, truth: Truth) -> NDArray[np.float64]:
    """`log_losses` once logits were divided by the one temperature that makes their mean the smallest.

    (Guo et al., 2017.) Without it, whatever makes an overconfident network less sure would look better.
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
