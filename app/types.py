"""What travels the road of a request: bytes → pixels → batch → scores → predictions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, StrEnum, auto
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""`(H, W, 3)` uint8 RGB at the model's own input size, or `(N, H, W, 3)` where a batch is meant."""

Scores = NDArray[np.float32]
"""`(classes,)` float32 for one image, or `(N, classes)` where a batch is meant."""

ScoreKind = Literal["logits", "probabilities"]


class InputSpec(StrEnum):
    """What a backend can take. The batcher groups by this key and never looks inside it."""

    PIXELS_U8 = "pixels_u8"


class Want(Flag):
    """What a caller needs from a batch; a backend computes no more than that."""

    SCORES = auto()


class Interpolation(Enum):
    """The resampling filters that published preprocessings use, by torchvision's names."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photo becomes a model's input.

    The short side of the upright RGB image is resized to `resize_short_side` pixels, the centre `crop` (height, width)
    is cut out, and a backend computes `(pixel / 255 - mean) / std` for each of red, green and blue.
    """

    resize_short_side: int
    crop: tuple[int, int]
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def describe(self) -> str:
        """One line for a person."""
        height, width = self.crop
        return (
            f"short side {self.resize_short_side} {self.interpolation.value}, centre crop {height}×{width}, "
            f"mean {_figures(self.mean)}, std {_figures(self.std)}"
        )


def _figures(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a backend answers for a batch: `(N, classes)` float32 scores and what they are."""

    scores: Scores
    kind: ScoreKind


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of the ranking. Two classes may share a label; `class_id` keeps them apart."""

    class_id: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds that one image spent on each stage of the road."""

    decode_seconds: float
    queue_seconds: float
    inference_seconds: float


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answered: `version` is the first 8 hex digits of its weights' SHA-256."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image, best class first."""

    model: ModelIdentity
    predictions: tuple[Prediction, ...]
    timings: StageTimings
    batch_size: int
