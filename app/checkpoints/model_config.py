"""config.json and preprocessor_config.json, as transformers and timm write them → what they tell of a ResNet-50."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError
from ..types import Interpolation, Preprocessing
from .base import Decision, Told
from .presets import IMAGENET_MEAN, IMAGENET_STD, PRESETS

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_MAX_BYTES = 16 * 1024 * 1024
_MAX_SIDE = 4096

# What makes a ResNetConfig a ResNet-50: the defaults of transformers/models/resnet/configuration_resnet.py.
_RESNET50: Mapping[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
}
# timm's names of what is built here, and those that torchvision has under the same name with the same entries.
_TIMM_SERVED = frozenset({"resnet50", "resnet50c", "resnet50d", "resnet50s", "resnet50t"})
_TIMM_AS_TORCHVISION = frozenset(
    {"resnet18", "resnet34", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "resnext101_32x8d"}
)
# They hold the entries of a ResNet-50 exactly, and blur where it strides.
_TIMM_ANTIALIASED = ("resnetaa", "resnetblur")
# Arguments of timm's ResNet that change nothing at inference, and those that only have the values they have anyway.
_HARMLESS_ARGUMENTS = frozenset({"num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"})
_USUAL_ARGUMENTS: Mapping[str, Any] = {"global_pool": "avg", "in_chans": 3, "output_stride": 32, "act_layer": "relu"}

# PIL.Image.Resampling, as preprocessor_config.json numbers it. BOX (4) and HAMMING (5) no published model uses.
_RESAMPLING = {
    0: Interpolation.NEAREST,
    1: Interpolation.LANCZOS,
    2: Interpolation.BILINEAR,
    3: Interpolation.BICUBIC,
}
_HALF = (0.5, 0.5, 0.5)
# ConvNextImageProcessor: below, crop after a resize by crop_pct; from here on, squash.
_SQUASHED_SINCE = 384
_DEFAULT_CROP_PCT = 0.875


class _Unclear(Exception):
    """A preparation of images that cannot be followed; the message says what stands there."""


def is_hugging_face(folder: Path) -> bool:
    """Whether config.json is of transformers' model classes. TimmWrapper's is timm's."""
    config = read_json(folder / CONFIG)
    return isinstance(config.get("model_type"), str) and not _has_timm_keys(config)


def is_timm(folder: Path) -> bool:
    return _has_timm_keys(read_json(folder / CONFIG))


def _has_timm_keys(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)


def read_hugging_face(folder: Path) -> tuple[Told, tuple[str, ...]]:
    """What a ResNetConfig and its image processor tell, and warnings.

    Raises `CheckpointError` where the config is of another network.
    """
    path = folder / CONFIG
    config = read_json(path)
    if config["model_type"] != "resnet":
        raise CheckpointError(
            f"{path} is of a {config['model_type']}: expected model_type resnet. Only ResNets are served from "
            f"Hugging Face folders."
        )
    for name, expected in _RESNET50.items():
        found = config.get(name, expected)
        if found != expected:
            raise CheckpointError(
                f"{path} is of another network than ResNet-50: {name} is {_brief(found)}, expected {expected}."
            )
    in_first = config.get("downsample_in_bottleneck", False)
    if not isinstance(in_first, bool):
        raise CheckpointError(f"{path}: downsample_in_bottleneck is {_brief(in_first)}, expected true or false.")
    stride: Literal["3x3", "1x1"] = "1x1" if in_first else "3x3"
    labels = _id2label(config, path)
    preprocessing, warnings = _processor(folder)
    told = Told(
        architecture=Decision("resnet50", CONFIG),
        stride_in=Decision(stride, CONFIG),
        preprocessing=preprocessing,
        labels=Decision(labels, CONFIG) if labels else None,
    )
    return told, warnings


def read_timm(folder: Path) -> tuple[Told, tuple[str, ...]]:
    """What timm's config.json (timm/models/_hub.py, save_config_for_hf) tells, and warnings.

    Raises `CheckpointError` where it names a network that is not served.
    """
    path = folder / CONFIG
    config = read_json(path)
    architecture = config["architecture"]
    if architecture.startswith(_TIMM_ANTIALIASED):
        raise CheckpointError(
            f"{path} names {architecture}, an anti-aliased network with the entries of another: served as a ResNet-50 "
            f"it would answer wrongly. It is not served."
        )
    if architecture not in _TIMM_SERVED | _TIMM_AS_TORCHVISION:
        raise CheckpointError(
            f"{path} names {architecture[:64]}, which is not served. Served are {', '.join(sorted(_TIMM_SERVED))} and, "
            f"of torchvision's, {', '.join(sorted(_TIMM_AS_TORCHVISION))}."
        )
    changed = _changed_arguments(config)
    if changed:
        raise CheckpointError(f"{path} changes {architecture} by {', '.join(changed)[:120]}, which is not served.")
    try:
        preprocessing: Decision[Preprocessing] | None = Decision(_timm_preprocessing(config["pretrained_cfg"]), CONFIG)
        warnings: tuple[str, ...] = ()
    except _Unclear as error:
        preprocessing, warnings = None, (f"{path}: {error}, which is not followed here.",)
    labels = _timm_labels(config) or _id2label(config, path)
    told = Told(
        architecture=Decision(architecture, CONFIG),
        stride_in=Decision("3x3", CONFIG) if architecture in _TIMM_SERVED else None,
        preprocessing=preprocessing,
        labels=Decision(labels, CONFIG) if labels else None,
    )
    return told, warnings


def _changed_arguments(config: Mapping[str, Any]) -> list[str]:
    """The arguments that make a network another one than its name says."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        return ["model_args"]
    arguments = {"global_pool": config.get("global_pool", "avg")} | arguments
    return sorted(
        name
        for name, value in arguments.items()
        if name not in _HARMLESS_ARGUMENTS and not (name in _USUAL_ARGUMENTS and value == _USUAL_ARGUMENTS[name])
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file. Raises `CheckpointError` for anything else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is over {_MAX_BYTES:,} bytes, which no model's configuration is.")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}: {error.strerror}. Make it readable for the user that runs the service."
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON. Copy or download it again.") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object, as a model's configuration is. Copy or download it again.")
    return document


def _id2label(config: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    """Names by index. LABEL_0, LABEL_1, … are what transformers writes where nobody named them: they tell nothing."""
    named = config.get("id2label")
    if named is None:
        return None
    try:
        labels = [named[str(index)] for index in range(len(named))]
    except (KeyError, TypeError):
        labels = [None]
    if not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f'{path}: id2label is no label map. Expected {{"0": "name", …}} with every index from 0.')
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else tuple(labels)


def _timm_labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """label_names, each by its description where there is one (ImageNet's names there are WordNet's numbers)."""
    source = config if isinstance(config.get("label_names"), list) else config["pretrained_cfg"]
    names = source.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    described = source.get("label_descriptions")
    described = described if isinstance(described, dict) else {}
    labels = tuple(str(described.get(name, name)) for name in names)
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels


def _processor(folder: Path) -> tuple[Decision[Preprocessing], tuple[str, ...]]:
    """The image processor's way, or with a warning that of Hugging Face's own ResNet-50."""
    path = folder / PREPROCESSOR
    assumed = Decision(PRESETS["huggingface"], "Hugging Face's ResNet-50", is_assumed=True)
    config = read_json(path)
    if not config:
        return assumed, ()
    try:
        return Decision(_processor_preprocessing(config), PREPROCESSOR), ()
    except _Unclear as error:
        return assumed, (f"{path}: {error}, which is not followed here.",)


def _processor_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """transformers/models/convnext/image_processing_convnext.py, and the plain processors that have a crop_size."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ConvNext")
    if config.get("do_resize", True) is not True:
        raise _Unclear("it does not resize")
    code = config.get("resample", 3 if "ConvNext" in kind else 2)
    if isinstance(code, bool) or not isinstance(code, int) or code not in _RESAMPLING:
        raise _Unclear(f"resample is {_brief(code)}")
    mean, std = _normalisation(config)
    short, crop = _processor_geometry(config, kind)
    return Preprocessing(short, crop, _RESAMPLING[code], mean, std, floor_crop=True)


def _processor_geometry(config: Mapping[str, Any], kind: str) -> tuple[int | None, tuple[int, int]]:
    """The short side (None: squashed) and the crop."""
    size = config.get("size", {"shortest_edge": 384} if "ConvNext" in kind else None)
    # Files from before transformers 4.27 have a number: ConvNext's short side, the others' square.
    if isinstance(size, int):
        size = {"shortest_edge": size} if "ConvNext" in kind else {"height": size, "width": size}
    if not isinstance(size, dict):
        raise _Unclear(f"size is {_brief(size)}")
    cropped = None if "ConvNext" in kind else _crop_size(config)
    if "shortest_edge" in size and "longest_edge" not in size:
        short = _side(size["shortest_edge"])
        if "ConvNext" in kind:
            if short >= _SQUASHED_SINCE:
                return None, (short, short)
            return _side(int(short / _fraction(config.get("crop_pct"), short))), (short, short)
        if cropped is None or max(cropped) > short:
            raise _Unclear(f"it resizes to a short side of {short} and crops to {cropped or 'nothing'}")
        return short, cropped
    if {"height", "width"} <= size.keys():
        squashed = _side(size["height"]), _side(size["width"])
        if cropped not in (None, squashed):
            raise _Unclear(f"it squashes to {squashed} and crops to {cropped}")
        return None, squashed
    raise _Unclear(f"size is {_brief(size)}")


def _crop_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    if not config.get("do_center_crop", "crop_size" in config):
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


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """timm/data/transforms_factory.py, transforms_imagenet_eval, for what pretrained_cfg says."""
    size = config.get("input_size", [3, 224, 224])
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
        raise _Unclear(f"input_size is {_brief(size)}")
    height, width = _side(size[1]), _side(size[2])
    fraction = _fraction(config.get("crop_pct"), max(height, width))
    try:
        interpolation = Interpolation(config.get("interpolation", "bicubic"))
    except ValueError:
        raise _Unclear(f"interpolation is {_brief(config['interpolation'])}") from None
    mode = config.get("crop_mode") or "center"
    short: int | None
    if mode == "center" and height == width:
        short = _side(math.floor(height / fraction))
    elif mode == "squash" and fraction == 1:
        short = None
    else:
        raise _Unclear(f"crop_mode is {_brief(mode)} with {height}×{width} and crop_pct {fraction:g}")
    mean = _three(config.get("mean", IMAGENET_MEAN))
    std = _three(config.get("std", IMAGENET_STD), positive=True)
    return Preprocessing(short, (height, width), interpolation, mean, std)


def _fraction(value: Any, side: int) -> float:
    """crop_pct: at most 1, and not so small that the resize is past any use."""
    (fraction,) = _numbers([_DEFAULT_CROP_PCT if value is None else value], 1, positive=True)
    if not side / _MAX_SIDE <= fraction <= 1:
        raise _Unclear(f"crop_pct is {_brief(value)}")
    return fraction


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIDE:
        raise _Unclear(f"a side is {_brief(value)}")
    return value


def _three(value: Any, positive: bool = False) -> tuple[float, float, float]:
    if isinstance(value, int | float):
        value = [value] * 3
    first, second, third = _numbers(value, 3, positive)
    return first, second, third


def _numbers(value: Any, count: int, positive: bool) -> Iterator[float]:
    is_list = isinstance(value, list | tuple) and len(value) == count
    if not is_list or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) and abs(each) < 1e6
        for each in value
    ):
        raise _Unclear(f"a mean, a deviation or a factor is {_brief(value)}")
    if positive and min(value) < 1e-6:
        raise _Unclear(f"a deviation or a factor is {_brief(value)}")
    return (float(each) for each in value)


def _brief(value: Any) -> str:
    """What stands in a file, short enough for one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
