"""The record of a quantized model: how it was made, how well it agrees with float32, and images to check that with."""

from __future__ import annotations

import base64
import binascii
import json
import platform
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..agreement import Agreement
from ..errors import CheckpointError
from ..resources import int8_features
from ..types import Pixels
from .record import ArtifactRecord, Record, Written

MAX_CHECK_IMAGES = 64

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Cpu(Written):
    """The facts of a CPU that determine how 8-bit products are summed."""

    machine: str = Field(max_length=64)
    features: tuple[str, ...] = Field(max_length=64)
    """Its instruction sets, among those that 8-bit kernels are chosen by."""

    @classmethod
    def here(cls) -> Cpu:
        return cls(machine=platform.machine(), features=tuple(sorted(int8_features())))

    def describe(self) -> str:
        return f"{self.machine} with {', '.join(self.features) or 'none of the instruction sets for 8 bits'}"


class Speeds(Written):
    """Median times of single images, with both networks measured alternately in one run."""

    float32_seconds: float = Field(gt=0)
    int8_seconds: float = Field(gt=0)
    threads: int = Field(ge=1)

    @property
    def ratio(self) -> float:
        return self.float32_seconds / self.int8_seconds


class CheckImages(Written):
    """Held-out images as the network takes them, and the float32 results for each."""

    shape: tuple[int, int, int, int]
    """(N, H, W, 3)."""
    pixels: str
    """uint8, deflated, in base64."""
    classes: tuple[Count, ...]
    """The top class of each image in float32."""
    probabilities: tuple[Share, ...]
    """The probability of that class in float32."""

    @classmethod
    def of(cls, pixels: Pixels, reference: NDArray[np.float64]) -> CheckImages:
        """`pixels` are (N, H, W, 3), `reference` the float32 network's probabilities (N, classes)."""
        count, height, width, channels = pixels.shape
        best = reference.argmax(axis=1)
        return cls(
            shape=(count, height, width, channels),
            pixels=base64.b64encode(zlib.compress(pixels.tobytes(), 9)).decode("ascii"),
            classes=tuple(best.tolist()),
            probabilities=tuple(reference.max(axis=1).clip(0, 1).tolist()),
        )

    @model_validator(mode="after")
    def _fits(self) -> CheckImages:
        count, height, width, channels = self.shape
        if not (1 <= count <= MAX_CHECK_IMAGES and 1 <= height <= 1024 and 1 <= width <= 1024 and channels == 3):
            raise ValueError("a shape that no images have")
        if len(self.classes) != count or len(self.probabilities) != count:
            raise ValueError("answers to another number of images")
        self.images()
        return self

    def images(self) -> Pixels:
        """(N, H, W, 3) uint8. Raises ValueError if they do not have the stated shape."""
        size = int(np.prod(self.shape))
        try:
            inflater = zlib.decompressobj()
            data = inflater.decompress(base64.b64decode(self.pixels, validate=True), size + 1)
        except (zlib.error, binascii.Error):
            raise ValueError("damaged images") from None
        if len(data) != size or not inflater.eof:
            raise ValueError("images of another size")
        return np.frombuffer(data, np.uint8).reshape(self.shape)


class QuantizedRecord(Record):
    """The complete record of a quantized model."""

    method: Literal["entropy", "percentile", "minmax"]
    per_channel: bool
    reduce_range: bool
    """Whether weights have 7 bits, so that a 16-bit sum of two products cannot overflow."""
    kept_float: tuple[str, ...]
    """Layers that stayed in float32."""
    layers: Count
    calibration_images: Count
    agreement: Agreement
    """Agreement with float32, on images that were not used for calibration."""
    speeds: Speeds
    cpu: Cpu
    check: CheckImages

    @model_validator(mode="after")
    def _fits(self) -> QuantizedRecord:
        agreement = self.agreement
        if not (0 <= agreement.top1 <= 1 and 0 <= agreement.top5 <= 1 and agreement.images >= 1):
            raise ValueError("an agreement that is none")
        # One output is compared as two classes.
        if max(self.check.classes) >= max(2, self.class_count) or self.check.shape[1:3] != self.preprocessing.crop:
            raise ValueError("images of another network")
        return self

    def describe(self) -> str:
        """One line of text."""
        kept = f"{len(self.kept_float)} of {self.layers} layers kept in float32" if self.kept_float else "all layers"
        return f"int8 ({kept}), agrees with float32: {self.agreement.describe()}"


def parse_record(text: str) -> QuantizedRecord | ArtifactRecord:
    """A record from its JSON. Raises ValueError for any other text."""
    document = json.loads(text)
    if isinstance(document, dict) and "kind" in document:
        return ArtifactRecord.model_validate_json(text)
    return QuantizedRecord.model_validate_json(text)


def read_record(text: str, path: Path) -> QuantizedRecord | ArtifactRecord:
    """A record from its JSON. Raises `CheckpointError` for any other text."""
    try:
        return parse_record(text)
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path} has a damaged record of how it was quantized. Quantize the checkpoint again."
        ) from None
