"""Weights that torchvision publishes: their addresses, checksums and preprocessing, from a table of its own.

`tests/parity/make_published.py` writes the table from torchvision, and a test compares the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import SettingError
from ..types import Interpolation, Preprocessing
from .presets import PRESETS

_FOLDER = "https://download.pytorch.org/models/"
# torchvision ends a file's name with the first 8 hex digits of its SHA-256 (torch.hub.download_url_to_file).
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """One entry of torchvision's list of pretrained weights."""

    architecture: str
    name: str
    url: str
    preprocessing: Preprocessing

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def sha256_prefix(self) -> str | None:
        match = _HASH_IN_NAME.search(self.file_name)
        return match[1] if match else None


def published_resnet50_preprocessing() -> Preprocessing:
    """The preprocessing of ResNet-50's IMAGENET1K_V1, without reading the table; a test compares the two."""
    return PRESETS["torchvision-v1"]


def find_by_name(architecture: str, name: str) -> PublishedWeights:
    """torchvision's weights `name` of `architecture`. Raises `SettingError` with the known names."""
    published = _all_of(architecture)
    for weights in published:
        if weights.name == name:
            return weights
    if name == "DEFAULT":
        return published[-1]
    names = ", ".join(weights.name for weights in published)
    raise SettingError(f"torchvision has no weights {name} for {architecture}. It has: {names}.")


def find_by_sha256(architecture: str, sha256: str) -> PublishedWeights | None:
    """The published weights with this digest, whose preprocessing is known; None for other files."""
    for weights in _published().get(architecture, ()):
        if weights.sha256_prefix and sha256.startswith(weights.sha256_prefix):
            return weights
    return None


def default_preprocessing(architecture: str) -> tuple[Preprocessing, str]:
    """The preprocessing to assume for a checkpoint of unknown training, and the name of its weights.

    It is that of the oldest published weights, the most common training recipe: for ResNet-50, short side 256.
    """
    oldest = _all_of(architecture)[0]
    return oldest.preprocessing, oldest.name


def _all_of(architecture: str) -> tuple[PublishedWeights, ...]:
    published = _published()
    if architecture not in published:
        raise SettingError(
            f"RESNET_ARCHITECTURE cannot be {architecture!r}: torchvision has no such classifier. "
            f"It has: {', '.join(published)}."
        )
    return published[architecture]


@cache
def _published() -> Mapping[str, tuple[PublishedWeights, ...]]:
    """Each classifier of torchvision → its weights, the oldest first."""
    table = files(__package__.rpartition(".")[0]) / "data" / "torchvision_weights.json"
    return {
        architecture: tuple(_weights(architecture, entry) for entry in entries)
        for architecture, entries in json.loads(table.read_text(encoding="utf-8")).items()
    }


def _weights(architecture: str, entry: Mapping[str, Any]) -> PublishedWeights:
    height, width = entry["crop"]
    preprocessing = Preprocessing(
        resize_short_side=entry["resize"],
        crop=(height, width),
        interpolation=Interpolation(entry["interpolation"]),
        mean=_three(entry["mean"]),
        std=_three(entry["std"]),
    )
    return PublishedWeights(architecture, entry["name"], _FOLDER + entry["file"], preprocessing)


def _three(values: list[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
