"""Image processors and pretrained_cfg are followed as their libraries do, or said not to be."""

from __future__ import annotations

from typing import Any

import pytest

from app.checkpoints.image_config import Unclear, processor_preprocessing, timm_preprocessing
from app.types import Interpolation

MEAN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CONVNEXT = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, **MEAN}
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 256, "width": 320}, "resample": 2, **MEAN}


@pytest.mark.parametrize(
    ("name", "resizer"),
    [
        ("ConvNextImageProcessor", "pillow"),
        ("ConvNextFeatureExtractor", "pillow"),
        ("ConvNextImageProcessorFast", "torchvision"),
        ("BitImageProcessorFast", "torchvision"),
    ],
)
def test_a_fast_processor_resizes_tensors(name: str, resizer: str) -> None:
    """Its name says so; of other names Pillow's resize is assumed."""
    config = CONVNEXT | {"image_processor_type": name, "crop_size": {"height": 224, "width": 224}}
    assert processor_preprocessing(config).resizer == resizer


@pytest.mark.parametrize(("code", "interpolation"), [(4, Interpolation.BOX), (5, Interpolation.HAMMING)])
def test_every_filter_of_pillow_is_followed(code: int, interpolation: Interpolation) -> None:
    """By its number; torchvision has two of them not."""
    assert processor_preprocessing(CONVNEXT | {"resample": code}).interpolation is interpolation
    with pytest.raises(Unclear, match=f"resample is {code}, which torchvision does not have"):
        processor_preprocessing(CONVNEXT | {"resample": code, "image_processor_type": "ConvNextImageProcessorFast"})


def test_squashed_and_then_cropped() -> None:
    """A processor that resizes to height and width and crops what that gives."""
    found = processor_preprocessing(VIT | {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}})
    assert (found.resize_short_side, found.squash, found.crop) == (None, (256, 320), (224, 224))
    found = timm_preprocessing({"input_size": [3, 224, 192], "crop_pct": 0.8, "crop_mode": "squash"})
    assert (found.resize_short_side, found.squash, found.crop) == (None, (280, 240), (224, 192))
    found = timm_preprocessing({"input_size": [3, 224, 192], "crop_pct": 1.0, "crop_mode": "squash"})
    assert (found.resize_short_side, found.squash, found.crop) == (None, None, (224, 192))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order is true"),
        ({"do_pad": True}, "do_pad is true"),
        ({"do_thumbnail": True}, "do_thumbnail is true"),
        ({"rescale_offset": True}, "rescale_offset is true"),
        ({"do_center_crop": True, "crop_size": 200}, "do_center_crop is true"),
        ({"image_processor_type": "PoolFormerImageProcessor"}, "crop_pct is 0.875"),
        ({"image_mean": [10**400, 0, 0]}, "a mean, a deviation or a factor is"),
        ({"image_std": [float("nan"), 1, 1]}, "a mean, a deviation or a factor is"),
    ],
)
def test_what_a_processor_does_beside_is_not_passed_over(change: dict[str, Any], part: str) -> None:
    """A step that is stated and not followed here is named, and nothing is taken for sure."""
    with pytest.raises(Unclear, match=part):
        processor_preprocessing(CONVNEXT | change)
