"""config.json and preprocessor_config.json, as transformers and timm write them → what they tell of a ResNet-50."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError
from ..types import Preprocessing
from .base import Decision, Told
from .image_config import Unclear, brief, processor_preprocessing, timm_preprocessing
from .presets import PRESETS

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_MAX_BYTES = 16 * 1024 * 1024

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
                f"{path} is of another network than ResNet-50: {name} is {brief(found)}, expected {expected}."
            )
    in_first = config.get("downsample_in_bottleneck", False)
    if not isinstance(in_first, bool):
        raise CheckpointError(f"{path}: downsample_in_bottleneck is {brief(in_first)}, expected true or false.")
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
        preprocessing: Decision[Preprocessing] | None = Decision(timm_preprocessing(config["pretrained_cfg"]), CONFIG)
        warnings: tuple[str, ...] = ()
    except Unclear as error:
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
        value = processor_preprocessing(config)
        by = ", resized by torchvision" if value.resizer == "torchvision" else ""
        return Decision(value, f"{PREPROCESSOR}{by}"), ()
    except Unclear as error:
        return assumed, (f"{path}: {error}, which is not followed here.",)
