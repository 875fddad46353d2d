"""The figures of an evaluation: accuracy, calibration, figures of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..agreement import Probabilities
from .statistics import Calibration, Interval, calibration, wilson
from .trials import Truth, log_losses

_TOP = 5


@dataclass(frozen=True, slots=True)
class Share:
    """The number of photos that are right, and the number of all."""

    right: int
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count if self.count else 0.0

    @property
    def interval(self) -> Interval:
        """The 95% confidence interval (Wilson)."""
        return wilson(self.right, self.count)

    def document(self) -> dict[str, Any]:
        return {"value": self.value, "right": self.right, "photos": self.count, "interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """The figures of one class that photos show."""

    index: int
    label: str
    photos: int
    right: int
    """Photos of this class whose first class is this one."""
    answered: int
    """All photos whose first class is this one."""
    truth_probability: float

    @property
    def top1(self) -> float:
        """The recall of this class."""
        return self.right / self.photos if self.photos else 0.0

    @property
    def precision(self) -> float | None:
        """The share of photos with this first class that show it; None if no photo has it."""
        return self.right / self.answered if self.answered else None

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"top1": self.top1, "precision": self.precision}


@dataclass(frozen=True, slots=True)
class Confusion:
    """Photos of one class whose first class is another."""

    label: str
    answered: str
    photos: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The accuracy of answers to photos whose classes are known."""

    top1: Share
    top5: Share | None
    """None if there are five classes or fewer."""
    log_loss: float
    truth_probability: float
    calibration: Calibration
    classes: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    """In descending order of frequency."""
    several: int
    """Photos that show several classes; any of these as first class is right."""

    @property
    def count(self) -> int:
        return self.top1.count

    def document(self) -> dict[str, Any]:
        return {
            "photos": self.count,
            "photos_of_several_classes": self.several,
            "top1": self.top1.document(),
            "top5": None if self.top5 is None else self.top5.document(),
            "log_loss": self.log_loss,
            "truth_probability": self.truth_probability,
            "calibration_error": self.calibration.error,
            "calibration_bins": [asdict(each) for each in self.calibration.bins],
            "classes": [each.document() for each in self.classes],
            "confusions": [asdict(each) for each in self.confusions],
        }


def measure_accuracy(found: Probabilities, truth: Truth, labels: Sequence[str]) -> Accuracy:
    """The accuracy of `found` `(N, classes)`; `truth` is in the same order."""
    rows = np.arange(len(found))
    order = np.argsort(-found, axis=1, kind="stable")[:, :_TOP]
    best = order[:, 0]
    is_right = truth[rows, best]
    in_five = truth[rows[:, None], order].any(axis=1)
    several = truth.sum(axis=1) > 1
    # Photos of several classes are left out: their wrong answer belongs to no single class.
    pairs = Counter((int(truth[row].argmax()), int(best[row])) for row in np.flatnonzero(~is_right & ~several).tolist())
    classes = []
    for index in np.flatnonzero(truth.any(axis=0)).tolist():
        shown = truth[:, index]
        classes.append(
            ClassAccuracy(
                index,
                labels[index],
                int(shown.sum()),
                int((shown & (best == index)).sum()),
                int((best == index).sum()),
                float(found[shown, index].mean()),
            )
        )
    return Accuracy(
        top1=Share(int(is_right.sum()), len(found)),
        top5=Share(int(in_five.sum()), len(found)) if found.shape[1] > _TOP else None,
        log_loss=float(log_losses(found, truth).mean()),
        truth_probability=float(found[truth].mean()),
        calibration=calibration(found[rows, best], is_right),
        classes=tuple(classes),
        confusions=tuple(
            Confusion(labels[true], labels[given], count)
            for (true, given), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        ),
        several=int(several.sum()),
    )


@dataclass(frozen=True, slots=True)
class Certainty:
    """The confidence of answers, whether they are right or not."""

    photos: int
    confidence: float
    """Mean probability of the first class."""
    entropy: float
    """Mean entropy in nats: over the classes, or the sum over sigmoids."""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def entropies(found: Probabilities, is_exclusive: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The entropy of each photo's answer, in nats."""
    given = np.clip(found, 1e-12, 1.0)
    parts = given * np.log(given)
    if not is_exclusive:
        other = np.clip(1 - found, 1e-12, 1.0)
        parts = parts + other * np.log(other)
    return np.asarray(-parts.sum(axis=1))
