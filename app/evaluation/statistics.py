"""Confidence intervals, paired tests and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Z95 = 1.959963984540054
"""The normal distribution's 97.5% point."""
_FLIPS = 50_000
_FLIPS_AT_ONCE = 5_000


def wilson(right: int, count: int) -> Interval:
    """The 95% confidence interval of a share (Wilson, 1927): within 0…1, and not empty for shares of 0 and 1."""
    if count == 0:
        return 0.0, 1.0
    share, square = right / count, Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    # At the ends the sums are 0 and 1 except for rounding.
    return (max(0.0, centre - half) if right else 0.0, min(1.0, centre + half) if right < count else 1.0)


def difference_interval(gained: int, lost: int, count: int) -> Interval:
    """The 95% confidence interval of the difference of two shares over the same photos.

    `gained` and `lost` are the photos that only the one and only the other has right. Wald's interval, with one photo
    added to each (Bonett and Price, 2012, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data").
    """
    one, other = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = Z95 * math.sqrt(max(0.0, one + other - (one - other) ** 2) / (count + 2))
    return max(-1.0, one - other - half), min(1.0, one - other + half)


def mcnemar(gained: int, lost: int) -> float:
    """One-sided exact p-value for gaining, and not losing, so many photos by chance (McNemar, 1947).

    Only photos count that one of the two has right and the other wrong; by chance, half of those would be gained.
    """
    count = gained + lost
    if gained <= lost:
        return 1.0
    ways: int = sum(math.comb(count, each) for each in range(gained, count + 1))
    return float(ways / 2**count)


def sign_flips(differences: NDArray[np.float64]) -> float:
    """One-sided p-value for a mean of paired differences as far below 0 by chance (Fisher, 1935).

    If neither of the two is better, each difference is as likely with the opposite sign: the p-value is the share of
    random signs with a mean as low. The signs are the same in every call. The lowest value is 1 in 50,001.
    """
    found = float(differences.sum())
    if found >= 0:
        return 1.0
    as_low = 0
    for part in range(_FLIPS // _FLIPS_AT_ONCE):
        sums = _signs(len(differences), part) @ differences.astype(np.float32)
        as_low += int((sums <= found * (1 - 1e-6)).sum())
    return (as_low + 1) / (_FLIPS + 1)


def _signs(count: int, part: int) -> NDArray[np.float32]:
    bits = np.random.default_rng((count, part)).integers(0, 2, (_FLIPS_AT_ONCE, count), dtype=np.int8)
    return np.asarray(bits * 2 - 1, np.float32)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), which bounds the probability of any false finding."""
    corrected = [1.0] * len(values)
    largest = 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=lambda each: values[each])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        corrected[at] = largest
    return corrected


@dataclass(frozen=True, slots=True)
class Bin:
    """Photos whose first class has a probability within a range."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean probability of the first class; 0 if there are no photos."""
    accuracy: float
    """Share of the photos whose first class is right."""


@dataclass(frozen=True, slots=True)
class Calibration:
    error: float
    """Σ (count / photos) |accuracy - confidence| over the bins (Guo et al., 2017, "On calibration of modern neural
    networks", equation 5)."""
    bins: tuple[Bin, ...]


def calibration(confidences: NDArray[np.float64], is_right: NDArray[np.bool_], bins: int = 15) -> Calibration:
    """Expected calibration error over bins of equal width, each without its lower bound and with its upper one."""
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    found, error = [], 0.0
    for number in range(bins):
        inside = places == number
        count = int(inside.sum())
        confidence = float(confidences[inside].mean()) if count else 0.0
        accuracy = float(is_right[inside].mean()) if count else 0.0
        error += count / max(1, len(confidences)) * abs(accuracy - confidence)
        found.append(Bin(number / bins, (number + 1) / bins, count, confidence, accuracy))
    return Calibration(error, tuple(found))
