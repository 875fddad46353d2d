"""Preprocessing in configuration files: transformers' image processors and timm's pretrained_cfg."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..preprocessing import MAX_SIDE, can_resize
from ..types import Interpolation, Preprocessing, Resizer
from .base import Decision, Told
from .left_out import Normalisation
from .presets import IMAGENET_MEAN, IMAGENET_STD, PRESETS

# PIL.Image.Resampling, as preprocessor_config.json numbers it.
_RESAMPLING = {
    0: Interpolation.NEAREST,
    1: Interpolation.LANCZOS,
    2: Interpolation.BILINEAR,
    3: Interpolation.BICUBIC,
    4: Interpolation.BOX,
    5: Interpolation.HAMMING,
}
# The steps of a processor that are supported; any other step is refused.
_FOLLOWED = frozenset({"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"})
# EfficientNet's options, which change the normalisation.
_OTHER_NORMALISATIONS = ("rescale_offset", "include_top")
# Ends the names of processors that resize tensors, in transformers 4 and 5. Other names do not state the resizer.
_TENSORS = "Fast"
_HALF = (0.5, 0.5, 0.5)
# ConvNextImageProcessor: below, crop after a resize by crop_pct; from here on, squash.
_SQUASHED_SINCE = 384
_DEFAULT_CROP_PCT = 0.875


class Unclear(Exception):
    """An unsupported preprocessing; the message quotes the file."""


def processor_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of transformers' ConvNextImageProcessor and of the plain processors with a crop_size.

    Source: transformers/models/convnext/image_processing_convnext.py. A processor whose name ends in Fast resizes with
    torchvision. Other processors resize with Pillow before transformers 5 and with torchvision since, with results that
    are mostly one level apart: Pillow is assumed.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ConvNext")
    if config.get("do_resize", True) is not True:
        raise Unclear("it does not resize")
    for name, value in config.items():
        if value is True and (name in _OTHER_NORMALISATIONS or (name.startswith("do_") and name not in _FOLLOWED)):
            raise Unclear(f"{name[:60]} is true")
    code = config.get("resample", 3 if "ConvNext" in kind else 2)
    if isinstance(code, bool) or not isinstance(code, int) or code not in _RESAMPLING:
        raise Unclear(f"resample is {brief(code)}")
    resizer: Resizer = "torchvision" if kind.endswith(_TENSORS) else "pillow"
    if not can_resize(resizer, _RESAMPLING[code]):
        raise Unclear(f"resample is {code}, which torchvision does not have,")
    mean, std = _normalisation(config)
    short, squash, crop = _processor_geometry(config, kind)
    return Preprocessing(
        short,
        crop,
        _RESAMPLING[code],
        mean,
        std,
        floor_crop=True,
        squash=squash,
        resizer=resizer,
    )


def _processor_geometry(
    config: Mapping[str, Any], kind: str
) -> tuple[int | None, tuple[int, int] | None, tuple[int, int]]:
    """The short side (None if squashed), the size to squash to if it is not the crop, and the crop."""
    size = config.get("size", {"shortest_edge": 384} if "ConvNext" in kind else None)
    # Files from before transformers 4.27 have a number: ConvNext's short side, the others' square.
    if isinstance(size, int):
        size = {"shortest_edge": size} if "ConvNext" in kind else {"height": size, "width": size}
    if not isinstance(size, dict):
        raise Unclear(f"size is {brief(size)}")
    cropped = _crop_size(config, kind)
    if "ConvNext" in kind and cropped is not None:
        raise Unclear("do_center_crop is true")
    if "PoolFormer" in kind and config.get("crop_pct") is not None:
        raise Unclear(f"crop_pct is {brief(config['crop_pct'])}")
    if "shortest_edge" in size and "longest_edge" not in size:
        short = _side(size["shortest_edge"])
        if "ConvNext" in kind:
            if short >= _SQUASHED_SINCE:
                return None, None, (short, short)
            return _side(int(short / _fraction(config.get("crop_pct"), short))), None, (short, short)
        if cropped is None or max(cropped) > short:
            raise Unclear(f"it resizes to a short side of {short} and crops to {cropped or 'nothing'}")
        return short, None, cropped
    if {"height", "width"} <= size.keys():
        squashed = _side(size["height"]), _side(size["width"])
        if cropped in (None, squashed):
            return None, None, squashed
        if cropped[0] > squashed[0] or cropped[1] > squashed[1]:
            raise Unclear(f"it squashes to {squashed} and crops to {cropped}")
        return None, squashed, cropped
    raise Unclear(f"size is {brief(size)}")


def _crop_size(config: Mapping[str, Any], kind: str) -> tuple[int, int] | None:
    # ConvNeXt crops by crop_pct; other processors crop if they have a crop_size, unless do_center_crop is false.
    is_usual = "crop_size" in config and "ConvNext" not in kind
    if not config.get("do_center_crop", is_usual):
        return None
    crop = config.get("crop_size", 224)
    if isinstance(crop, dict):
        return _side(crop.get("height")), _side(crop.get("width"))
    return _side(crop), _side(crop)


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of (pixel / 255 - mean) / deviation, from those of (pixel * factor - mean) / deviation."""
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    (unit,) = _numbers([factor], 1, positive=True)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = _three(config.get("image_mean", _HALF)), _three(config.get("image_std", _HALF), positive=True)
    if math.isclose(unit * 255, 1):
        return mean, std
    scaled_mean = tuple(value / (255 * unit) for value in mean)
    scaled_std = tuple(value / (255 * unit) for value in std)
    return _three(list(scaled_mean)), _three(list(scaled_std), positive=True)


def with_normalisation(told: Told, normalisation: Normalisation) -> Told:
    """`told` with the mean and deviation that the checkpoint has as tensors, if `told` has no preprocessing."""
    if told.preprocessing is not None:
        return told
    value = replace(PRESETS["torchvision-v1"], mean=normalisation.mean, std=normalisation.std)
    source = f"the file's {normalisation.names[0]} and {normalisation.names[1]}, with torchvision's usual size"
    return replace(told, preprocessing=Decision(value, source, is_assumed=True))


def timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a pretrained_cfg, as in timm/data/transforms_factory.py, transforms_imagenet_eval."""
    size = config.get("input_size", [3, 224, 224])
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
        raise Unclear(f"input_size is {brief(size)}")
    height, width = _side(size[1]), _side(size[2])
    fraction = _fraction(config.get("crop_pct"), max(height, width))
    try:
        interpolation = Interpolation(config.get("interpolation", "bicubic"))
    except ValueError:
        raise Unclear(f"interpolation is {brief(config['interpolation'])}") from None
    mode = config.get("crop_mode") or "center"
    short: int | None = None
    squash: tuple[int, int] | None = None
    if mode == "center" and height == width:
        short = _side(math.floor(height / fraction))
    elif mode == "squash":
        scaled = _side(math.floor(height / fraction)), _side(math.floor(width / fraction))
        squash = None if scaled == (height, width) else scaled
    else:
        raise Unclear(f"crop_mode is {brief(mode)} with {height}×{width} and crop_pct {fraction:g}")
    mean = _three(config.get("mean", IMAGENET_MEAN))
    std = _three(config.get("std", IMAGENET_STD), positive=True)
    return Preprocessing(short, (height, width), interpolation, mean, std, squash=squash)


def _fraction(value: Any, side: int) -> float:
    """crop_pct: at most 1, and large enough that the resize stays within `MAX_SIDE`."""
    (fraction,) = _numbers([_DEFAULT_CROP_PCT if value is None else value], 1, positive=True)
    if not side / MAX_SIDE <= fraction <= 1:
        raise Unclear(f"crop_pct is {brief(value)}")
    return fraction


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise Unclear(f"a side is {brief(value)}")
    return value


def _three(value: Any, positive: bool = False) -> tuple[float, float, float]:
    if isinstance(value, int | float):
        value = [value] * 3
    first, second, third = _numbers(value, 3, positive)
    return first, second, third


def _numbers(value: Any, count: int, positive: bool) -> Iterator[float]:
    is_list = isinstance(value, list | tuple) and len(value) == count
    if not is_list or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < 1e6 for each in value
    ):
        raise Unclear(f"a mean, a deviation or a factor is {brief(value)}")
    if positive and min(value) < 1e-6:
        raise Unclear(f"a deviation or a factor is {brief(value)}")
    return (float(each) for each in value)


def brief(value: Any) -> str:
    """A value from a file, shortened to fit one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
