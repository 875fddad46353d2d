"""The figures of a quantization: agreement with float32, size and speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoints import QuantizedRecord

NEAR_TIE = 0.1
"""A margin between float32's probabilities of two classes, below which either class is as good an answer."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A held-out photo whose first class differs in 8 bits."""

    photo: str
    float32_label: str
    float32_probability: float
    int8_label: str
    int8_probability: float
    float32_margin: float
    """float32's probability of its own first class, less its probability of int8's first class."""


@dataclass(frozen=True, slots=True)
class Report:
    record: QuantizedRecord
    skipped: tuple[tuple[str, str], ...]
    """Photos that were not used, with the reason."""
    other_files: int
    damages: Mapping[str, float]
    """The damage of each layer alone; empty if all layers in 8 bits were good enough."""
    disagreements: tuple[Disagreement, ...]
    best: tuple[tuple[float, float], ...]
    """The probability of float32's first class for each held-out photo, in float32 and in int8."""
    float32_bytes: int
    int8_bytes: int

    @property
    def near_ties(self) -> int:
        return sum(each.float32_margin < NEAR_TIE for each in self.disagreements)

    def document(self) -> dict[str, Any]:
        """The report as JSON, without the stored images."""
        record = self.record.model_dump(mode="json", exclude={"check", "labels", "preprocessing"})
        return record | {
            "preprocessing": self.record.preprocessing.describe(),
            "classes": self.record.class_count,
            "check_images": self.record.check.shape[0],
            "speed_up": self.record.speeds.ratio,
            "float32_bytes": self.float32_bytes,
            "int8_bytes": self.int8_bytes,
            "skipped": [{"photo": name, "reason": reason} for name, reason in self.skipped],
            "other_files": self.other_files,
            "near_ties": self.near_ties,
            "disagreements": [asdict(each) for each in self.disagreements],
            "layer_damages": dict(self.damages),
        }
