"""The data of a request on its way: bytes → pixels → batch → scores → predictions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, StrEnum, auto
from typing import Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""`(H, W, 3)` uint8 RGB at the model's own input size, or `(N, H, W, 3)` where a batch is meant."""

Tensor = NDArray[np.float32]
"""`(3, H, W)` float32 at the model's input size, normalised and in the network's channel order (`Preprocessing`), or
`(N, 3, H, W)` where a batch is meant."""

Scores = NDArray[np.float32]
"""`(classes,)` float32 for one image, or `(N, classes)` where a batch is meant."""

Features = NDArray[np.float32]
"""`(C,)` float32, the mean of each feature map, or `(N, C)` where a batch is meant."""

FeatureMaps = NDArray[np.float32]
"""`(C, h, w)` float32, the input of the network's last global average pool, or `(N, C, h, w)` for a batch."""

Activation = Literal["softmax", "sigmoid", "none"]
"""What turns a network's scores into probabilities. none: they are probabilities already."""

DecodeMode = Literal["exact", "fast"]
"""Whether images are decoded as the reference transform does, to the last bit, or with fewer pixels on the way."""


def is_pixels(item: Pixels | Tensor) -> TypeGuard[Pixels]:
    """Whether an input, or a batch of inputs, is pixels and not a tensor."""
    return item.dtype.kind == "u"


class InputSpec(StrEnum):
    """The kinds of input that a backend can take."""

    PIXELS_U8 = "pixels_u8"
    """`Pixels`: channel order and normalisation are the backend's work."""
    TENSOR_F32 = "tensor_f32"
    """`Tensor`: the network's own input."""

    @classmethod
    def of(cls, item: Pixels | Tensor) -> InputSpec:
        """The kind of an input, by its dtype."""
        return _PIXELS_U8 if item.dtype.kind == "u" else _TENSOR_F32


# Python 3.11 takes a microsecond to look a member of an enumeration up in its class.
_PIXELS_U8, _TENSOR_F32 = InputSpec


class Want(Flag):
    """The outputs that a caller needs; a backend computes no others. Scores are part of every answer."""

    SCORES = auto()
    FEATURES = auto()
    FEATURE_MAPS = auto()


class Interpolation(Enum):
    """The resampling filters, by torchvision's names."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


Resizer = Literal["pillow", "torchvision", "torchvision-no-antialias"]
"""Whose resize the pixels are equal to: Pillow's (torchvision's of a PIL image), or torchvision's of a tensor."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a photo becomes a model's input.

    The upright RGB image is resized, its short side to `resize_short_side` pixels or (where that is None) squashed to
    `squash`; the centre `crop` (height, width) is cut out; and a backend computes `(pixel / 255 - mean) / std` for each
    channel, red first or, with `is_bgr`, blue first.
    """

    resize_short_side: int | None
    crop: tuple[int, int]
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_bgr: bool = False
    """Whether the network takes blue first; `mean` and `std` are in the network's order. Pixels stay RGB until then."""
    floor_crop: bool = False
    """Whether a crop that cannot be centred exactly goes to the smaller offset (Hugging Face), not to the even one."""
    squash: tuple[int, int] | None = None
    """Height and width where `resize_short_side` is None. None: those of the crop."""
    is_resized: bool = True
    """Whether the image is resized at all; `resize_short_side` and `squash` are None where it is not."""
    resizer: Resizer = "pillow"

    def scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`(pixel / 255 - mean) / std` as one multiplication and one addition, of each channel of the network."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def describe(self) -> str:
        """One line for a person."""
        height, width = self.crop
        offset = ", offset rounded down" if self.floor_crop and self._may_be_off_centre() else ""
        order = ", BGR" if self.is_bgr else ""
        return (
            f"{self._resize()}, centre crop {height}×{width}{offset}, mean {figures(self.mean)}, "
            f"std {figures(self.std)}{order}"
        )

    def _resize(self) -> str:
        if not self.is_resized:
            return "not resized"
        size = f"short side {self.resize_short_side}"
        if self.resize_short_side is None:
            size = f"squashed to {self.squash[0]}×{self.squash[1]}" if self.squash else "squashed"
        by = {
            "pillow": "",
            "torchvision": " (torchvision's)",
            "torchvision-no-antialias": " (torchvision's, without antialiasing)",
        }
        return f"{size} {self.interpolation.value}{by[self.resizer]}"

    def _may_be_off_centre(self) -> bool:
        return self.resize_short_side is not None or self.squash is not None or not self.is_resized


def figures(values: tuple[float, ...]) -> str:
    """Numbers for a person, with slashes in between."""
    return "/".join(f"{value:.4g}" for value in values)


@dataclass(frozen=True, slots=True)
class Outputs:
    """A backend's answer for a batch, or one row of it for one image."""

    scores: Scores
    activation: Activation
    """Turns the scores into probabilities."""
    features: Features | None = None
    """None where they were not wanted."""
    feature_maps: FeatureMaps | None = None
    """None where they were not wanted."""

    def row(self, index: int) -> Outputs:
        """The outputs for one image of the batch, as views."""
        features, maps = self.features, self.feature_maps
        return Outputs(
            self.scores[index],
            self.activation,
            None if features is None else features[index],
            None if maps is None else maps[index],
        )

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(
            part is None or bool(np.isfinite(part).all()) for part in (self.scores, self.features, self.feature_maps)
        )


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
class ScoredImage:
    """The model's outputs for one image, not ranked: rows without a batch axis."""

    model: ModelIdentity
    outputs: Outputs
    timings: StageTimings
    batch_size: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image, best class first."""

    model: ModelIdentity
    predictions: tuple[Prediction, ...]
    timings: StageTimings
    batch_size: int
