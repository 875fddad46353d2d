"""config.json and preprocessor_config.json of transformers and timm → facts about a ResNet-50."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError
from ..labels import names_by_index
from ..types import Activation, Preprocessing
from .base import Decision, Told
from .hub_cache import check_link
from .image_config import Unclear, brief, processor_preprocessing, timm_preprocessing
from .json_file import read_json
from .presets import PRESETS

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_ONNX = "Export the model to ONNX, which is served as it is."

# The values of a ResNetConfig for ResNet-50: the defaults in transformers/models/resnet/configuration_resnet.py.
_RESNET50: Mapping[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    # transformers' bottleneck uses it only in the stem and after a block; the activations within are ReLU.
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
}
# transformers' choice of the loss, and with it the meaning of the scores (loss/loss_utils.py).
_PROBLEMS: Mapping[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
# timm's names of networks built here, and its names for networks that torchvision has with the same entries.
_TIMM_SERVED = frozenset({"resnet50", "resnet50c", "resnet50d", "resnet50s", "resnet50t"})
_TIMM_AS_TORCHVISION = frozenset(
    {"resnet18", "resnet34", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "resnext101_32x8d"}
)
# They have exactly the entries of a ResNet-50, but blur before striding.
_TIMM_ANTIALIASED = ("resnetaa", "resnetblur")
_OLD_TIMM = frozenset({"num_features", "input_size", "crop_pct", "interpolation", "first_conv", "mean", "std"})
_LABEL_NAMES = ("label_names", "labels", "label_name")  # the current key, and older ones
# Arguments of timm's ResNet without effect at inference, and the default values of others.
_HARMLESS_ARGUMENTS = frozenset({"num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"})
_USUAL_ARGUMENTS: Mapping[str, Any] = {"global_pool": "avg", "in_chans": 3, "output_stride": 32, "act_layer": "relu"}


def is_hugging_face(folder: Path) -> bool:
    """Whether config.json is that of a transformers model. TimmWrapper's counts as timm's."""
    config = _read_config(folder)
    return isinstance(config.get("model_type"), str) and not _has_timm_keys(config)


def is_timm(folder: Path) -> bool:
    return _has_timm_keys(_read_config(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json, converted to timm's current form if it is an old one of timm; empty if there is none."""
    path = folder / CONFIG
    check_link(path, folder)
    config = read_json(path)
    # timm until 0.6 wrote pretrained_cfg at the top level (timm/models/_hub.py, load_model_config_from_hf).
    is_old_timm = isinstance(config.get("architecture"), str) and not {"model_type", "pretrained_cfg"} & config.keys()
    return config | {"pretrained_cfg": config} if is_old_timm and config.keys() & _OLD_TIMM else config


def _has_timm_keys(config: Mapping[str, Any]) -> bool:
    return isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg"), dict)


def read_hugging_face(folder: Path) -> tuple[Told, tuple[str, ...]]:
    """The facts in a ResNetConfig and its image processor, and warnings.

    Raises `CheckpointError` for the config of another network.
    """
    path = folder / CONFIG
    config = _read_config(folder)
    if config["model_type"] != "resnet":
        raise CheckpointError(
            f"{path} is of a {config['model_type'][:40]}: expected model_type resnet. Only ResNets are served from "
            f"Hugging Face folders. {_ONNX}"
        )
    for name, expected in _RESNET50.items():
        found = config.get(name, expected)
        if found != expected:
            raise CheckpointError(
                f"{path} is of another network than ResNet-50: {name} is {brief(found)}, expected {expected}. {_ONNX}"
            )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{path} has a quantization_config: its weights are quantized. Save the model before it is quantized."
        )
    in_first = config.get("downsample_in_bottleneck", False)
    if not isinstance(in_first, bool):
        raise CheckpointError(f"{path}: downsample_in_bottleneck is {brief(in_first)}, expected true or false.")
    stride: Literal["3x3", "1x1"] = "1x1" if in_first else "3x3"
    labels = _id2label(config, path) or _label2id(config)
    preprocessing, warnings = _processor(folder)
    told = Told(
        architecture=Decision("resnet50", CONFIG),
        stride_in=Decision(stride, CONFIG),
        preprocessing=preprocessing,
        labels=Decision(labels, CONFIG) if labels else None,
        activation=_activation(config, path),
    )
    return told, warnings


def _activation(config: Mapping[str, Any], path: Path) -> Decision[Activation] | None:
    """The activation for problem_type. Raises `CheckpointError` for regression and unknown types."""
    problem = config.get("problem_type")
    if problem is None:
        return None
    if problem == "regression":
        raise CheckpointError(
            f"{path} has problem_type regression: the model's outputs are numbers and not the scores of classes. If it "
            f"was trained on yes or no after all (binary cross-entropy), write multi_label_classification there."
        )
    if not isinstance(problem, str) or problem not in _PROBLEMS:
        raise CheckpointError(
            f"{path}: problem_type is {brief(problem)}. Expected {', '.join(_PROBLEMS)}, or none where it is not known."
        )
    return Decision(_PROBLEMS[problem], f"{CONFIG}, problem_type")


def read_timm(folder: Path) -> tuple[Told, tuple[str, ...]]:
    """The facts in timm's config.json (timm/models/_hub.py, save_config_for_hf), and warnings.

    Raises `CheckpointError` if it names a network that is not served.
    """
    path = folder / CONFIG
    config = _read_config(folder)
    architecture = config["architecture"]
    if architecture.startswith(_TIMM_ANTIALIASED):
        raise CheckpointError(
            f"{path} names {architecture[:64]}, an anti-aliased network with the entries of another: served as a "
            f"ResNet-50 it would answer wrongly. {_ONNX}"
        )
    if architecture not in _TIMM_SERVED | _TIMM_AS_TORCHVISION:
        raise CheckpointError(
            f"{path} names {architecture[:64]}, which is not served. Served are {', '.join(sorted(_TIMM_SERVED))} and, "
            f"of torchvision's, {', '.join(sorted(_TIMM_AS_TORCHVISION))}. {_ONNX}"
        )
    changed = _changed_arguments(config)
    if changed:
        raise CheckpointError(
            f"{path} changes {architecture} by {', '.join(changed)[:120]}, which is not served. {_ONNX}"
        )
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
    """The arguments that change the named network."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        return ["model_args"]
    arguments = {"global_pool": config.get("global_pool", "avg")} | arguments
    return sorted(
        name
        for name, value in arguments.items()
        if name not in _HARMLESS_ARGUMENTS and not (name in _USUAL_ARGUMENTS and value == _USUAL_ARGUMENTS[name])
    )


def _id2label(config: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    """The labels of id2label, in order of their indices."""
    named = config.get("id2label")
    if named is None:
        return None
    try:
        labels = [named[str(index)] for index in range(len(named))]
    except (KeyError, TypeError):
        labels = [None]
    if not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f'{path}: id2label is no label map. Expected {{"0": "name", …}} with every index from 0.')
    return _told(tuple(labels))


def _label2id(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels of label2id, for a file without id2label."""
    try:
        return _told(names_by_index({"label2id": config["label2id"]}) if config.get("label2id") else ())
    except ValueError:
        return None


def _told(labels: tuple[str, ...]) -> tuple[str, ...] | None:
    """`labels`; None for LABEL_0, LABEL_1, …, which transformers and timm write for unnamed classes."""
    return None if all(label == f"LABEL_{index}" for index, label in enumerate(labels)) else labels


def _timm_labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """label_names, each replaced by its description if there is one: ImageNet's label_names are WordNet IDs."""
    sources = ((source, source.get(key)) for source in (config, config["pretrained_cfg"]) for key in _LABEL_NAMES)
    source, names = next(((source, names) for source, names in sources if isinstance(names, list)), (config, None))
    if not names or not all(isinstance(name, str) for name in names):
        return None
    described = source.get("label_descriptions")
    described = described if isinstance(described, dict) else {}
    return _told(tuple(str(described.get(name, name)) for name in names))


def read_processor(folder: Path) -> tuple[Told, tuple[str, ...], tuple[str, ...]]:
    """Facts in an image processor's file beside weights without a known config.json; warnings; notes."""
    told = Told()
    warnings: tuple[str, ...] = ()
    if (folder / PREPROCESSOR).exists():
        preprocessing, warnings = _processor(folder)
        told = Told(preprocessing=None if preprocessing.is_assumed else preprocessing)
    unknown = f"{CONFIG} is not used: it is neither transformers' nor timm's."
    return told, warnings, (unknown,) if (folder / CONFIG).exists() else ()


def _processor(folder: Path) -> tuple[Decision[Preprocessing], tuple[str, ...]]:
    """The image processor's preprocessing; without a usable file, that of Hugging Face's ResNet-50. And warnings."""
    path = folder / PREPROCESSOR
    assumed = Decision(PRESETS["huggingface"], "Hugging Face's ResNet-50", is_assumed=True)
    check_link(path, folder)
    config = read_json(path)
    if not config:
        return assumed, ()
    try:
        value = processor_preprocessing(config)
        by = ", resized by torchvision" if value.resizer == "torchvision" else ""
        return Decision(value, f"{PREPROCESSOR}{by}"), ()
    except Unclear as error:
        return assumed, (f"{path}: {error}, which is not followed here.",)
