"""Weights that torchvision publishes: their addresses, checksums and preprocessing, asked of torchvision itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from ..types import Interpolation, Preprocessing
from .presets import PRESETS

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
    """What ResNet-50's IMAGENET1K_V1 takes, known without loading torchvision; a test compares the two."""
    return PRESETS["torchvision-v1"]


def is_published(architecture: str) -> bool:
    """Whether torchvision has this architecture; of our own networks and timm's it publishes no weights."""
    import torchvision.models

    return architecture in torchvision.models.list_models(module=torchvision.models)


def find_by_name(architecture: str, name: str) -> PublishedWeights:
    """torchvision's weights `name` of `architecture`. Raises `SettingError` that lists the names there are."""
    published = _all_of(architecture)
    for weights in published:
        if weights.name == name:
            return weights
    if name == "DEFAULT":
        return published[-1]
    names = ", ".join(weights.name for weights in published)
    raise SettingError(f"torchvision has no weights {name} for {architecture}. It has: {names}.")


def find_by_sha256(architecture: str, sha256: str) -> PublishedWeights | None:
    """The published file with this digest, if it is one: then its preprocessing is known and not assumed."""
    if not is_published(architecture):
        return None
    for weights in _all_of(architecture):
        if weights.sha256_prefix and sha256.startswith(weights.sha256_prefix):
            return weights
    return None


def default_preprocessing(architecture: str) -> tuple[Preprocessing, str]:
    """What to assume for a checkpoint of unknown training, and the name of the weights it is taken from.

    The oldest published weights stand for the training recipe that most people follow: for ResNet-50, short side 256.
    """
    oldest = _all_of(architecture)[0]
    return oldest.preprocessing, oldest.name


def _all_of(architecture: str) -> list[PublishedWeights]:
    import torchvision.models

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise SettingError(
            f"RESNET_ARCHITECTURE cannot be {architecture!r}: torchvision has no such classifier. "
            f"It has: {', '.join(known)}."
        )
    return [
        PublishedWeights(architecture, member.name, member.url, _preprocessing_of(member.transforms()))
        for member in torchvision.models.get_model_weights(architecture)
    ]


def _preprocessing_of(transforms: Any) -> Preprocessing:
    """torchvision.transforms._presets.ImageClassification, in our terms."""
    (resize,) = transforms.resize_size
    crop = transforms.crop_size
    height, width = crop if len(crop) == 2 else (crop[0], crop[0])
    return Preprocessing(
        resize_short_side=resize,
        crop=(height, width),
        interpolation=Interpolation(transforms.interpolation.value),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
