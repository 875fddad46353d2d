"""Networks that are taken for a ResNet-50: their signs, and what to do with each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

Weights = Mapping[str, NDArray[Any]]


# What self-supervised training puts behind a body: SimCLR, MoCo, BYOL, SwAV, DINO, Barlow Twins.
_PROJECTOR = re.compile(
    r"(?:^|[._])(?:projectors?|projection|projection_head|prototypes?|predictor|encoder_[qk]|queue)\b"
)
_BODY = re.compile(r"(?:conv1|bn1|layer[1-4])\.")


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    values = weights.get(name)
    return () if values is None else tuple(values.shape)


def _has(weights: Weights, *parts: str) -> bool:
    return any(part in name for name in weights for part in parts)


def _is_fastai(weights: Weights) -> bool:
    """A body in Sequential 0 and a head of its own in Sequential 1 (fastai/vision/learner.py)."""
    return "0.4.0.conv1.weight" in weights or "1.8.weight" in weights


def _has_other_normalisation(weights: Weights) -> bool:
    return len(weights) > 100 and not any(name.endswith("running_mean") for name in weights)


def _is_wider(weights: Weights) -> bool:
    entrance = _shape(weights, "layer1.0.conv1.weight")
    return len(entrance) == 4 and entrance[2:] == (1, 1) and entrance[0] != 64


def _is_smaller(weights: Weights) -> bool:
    return "layer1.0.conv1.weight" in weights and "layer1.0.conv3.weight" not in weights


def _has_projector(weights: Weights) -> bool:
    return "conv1.weight" in weights and any(_PROJECTOR.search(name) for name in weights)


def _dense(weights: Weights) -> list[str]:
    """The dense layers behind the body."""
    return [
        name.removesuffix(".weight") for name, values in weights.items() if values.ndim == 2 and not _BODY.match(name)
    ]


def _has_no_classifier(weights: Weights) -> bool:
    return "layer4.2.conv3.weight" in weights and "fc.weight" not in weights and not _dense(weights)


def _has_other_head(weights: Weights) -> bool:
    return "layer4.2.conv3.weight" in weights and "fc.weight" not in weights and bool(_dense(weights))


def _has_other_features(weights: Weights) -> bool:
    classifier = _shape(weights, "fc.weight")
    return "fc.weight" in weights and (len(classifier) != 2 or classifier[1] != 2048)


_OTHER = "If it is of another network, name that with --architecture, or export the model to ONNX."
# The first that holds is said.
_SIGNS: tuple[tuple[Callable[[Weights], bool], str], ...] = (
    (
        _is_fastai,
        "It is fastai's, whose head is no ResNet-50's and no --architecture of torchvision's: export it to ONNX.",
    ),
    (
        lambda weights: _has(weights, ".se.", ".se_module.", ".attn."),
        "It has squeeze-and-excitation or attention in its blocks (SE-ResNet), which is no --architecture of "
        "torchvision's: export it to ONNX.",
    ),
    (
        _has_other_normalisation,
        "It has no running_mean: its normalisation is no batch normalisation (GroupNorm, BiT), which is no "
        "--architecture of torchvision's: export it to ONNX.",
    ),
    (
        lambda weights: "layer3.6.conv1.weight" in weights,
        "It is a deeper ResNet: name it with --architecture resnet101 or resnet152.",
    ),
    (
        _is_smaller,
        "It is a ResNet of two convolutions a block: name it with --architecture resnet18 or resnet34.",
    ),
    (
        _is_wider,
        "It is a ResNeXt or a wide ResNet: name it with --architecture resnext50_32x4d or wide_resnet50_2.",
    ),
    (
        _has_projector,
        "It ends in a projector of self-supervised training, which is no classifier: train one on it. If it is of "
        "another network, name that with --architecture.",
    ),
    (
        _has_no_classifier,
        "It is a backbone without a classifier: train one on it. If it is of another network, name that with "
        "--architecture.",
    ),
    (
        _has_other_head,
        "Its dense layers do not lead from a ResNet-50's 2048 features to classes one after another: export the whole "
        "model to ONNX. If it is of another network, name that with --architecture.",
    ),
    (
        _has_other_features,
        "Its classifier does not take a ResNet-50's 2048 features: export the whole model to ONNX. If it is of another "
        "network, name that with --architecture.",
    ),
    (
        lambda weights: "conv1.0.weight" in weights,
        "Its deep stem is none of timm's resnet50c, d, s and t: export the model to ONNX. If it is of another network, "
        "name that with --architecture.",
    ),
)


def advice(architecture: str, weights: Weights) -> str:
    """What to do with weights that do not fit `architecture`, in a sentence."""
    if architecture.startswith("resnet50"):
        for has_sign, sentence in _SIGNS:
            if has_sign(weights):
                return sentence
    return _OTHER
