"""Whose names a checkpoint uses: recognised by signature, renamed to torchvision's, with the switches that go with it.

Rows of a table: a new family is one row. Each rule's origin stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import ResNetSwitches
from .base import Decision, Told, Weights
from .presets import PRESETS

Rename = Callable[[str], str | None]
"""A name as stored → torchvision's, or None for what inference does not need (optimizers, counters, other heads)."""

# HWIO → OIHW, which TensorFlow's convolution kernels need.
_KERNEL_AXES = (3, 2, 0, 1)
_FAMILY = "the family's way"
_BN = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclass(frozen=True, slots=True)
class Family:
    """One way of naming a ResNet-50's weights."""

    name: str
    signature: re.Pattern[str]
    """A name that only this family has."""
    rename: Rename
    told: Told
    """What belongs to this family: the rows of a checkpoint's decisions that its names settle."""
    channels_last: bool
    """Whether kernels are stored HWIO and dense weights `(in, out)`, as TensorFlow does."""


def _unit(stage: str, block: str, kind: str, number: str) -> str:
    """`layer{stage}.{block}.{conv|bn}{number}`, or the projection for the number that stands for it."""
    if number in ("0", "4", "shortcut"):
        return f"layer{stage}.{block}.downsample.{0 if kind == 'conv' else 1}"
    return f"layer{stage}.{block}.{kind}{number}"


def _original(name: str) -> str | None:
    """He et al. (2015) as a TF1 class: conv1, bn1, block2…5/bottlencekN/{conv,bn}_K (spelt so), fc6."""
    name = name.removeprefix("resnet50/")
    if match := re.fullmatch(r"block([2-5])/bottlencek(\d+)/(conv|bn)_([1-4])/(\w+)", name):
        stage, block, kind, number, leaf = match.groups()
        return _leaf(_unit(str(int(stage) - 1), str(int(block) - 1), kind, number), leaf)
    if match := re.fullmatch(r"(conv1|bn1|fc6)/(\w+)", name):
        module, leaf = match.groups()
        return _leaf("fc" if module == "fc6" else module, leaf)
    return None


def _slim(name: str) -> str | None:
    """TF-slim's resnet_v1_50 (tf_slim/nets/resnet_v1.py): the head is a 1×1 convolution called logits."""
    name = name.removeprefix("resnet_v1_50/")
    if match := re.fullmatch(
        r"block([1-4])/unit_(\d+)/bottleneck_v1/(?:conv([1-3])|(shortcut))/(BatchNorm/)?(\w+)", name
    ):
        stage, block, number, shortcut, norm, leaf = match.groups()
        return _leaf(_unit(stage, str(int(block) - 1), "bn" if norm else "conv", number or shortcut), leaf)
    if match := re.fullmatch(r"conv1/(BatchNorm/)?(\w+)", name):
        return _leaf("bn1" if match[1] else "conv1", match[2])
    if match := re.fullmatch(r"logits/(\w+)", name):
        return _leaf("fc", match[1])
    return None


def _leaf(module: str, leaf: str) -> str | None:
    """A variable's own name → torch's. Anything else there is an optimizer's."""
    leaf = {"kernel": "weight", "weights": "weight", "biases": "bias"}.get(leaf, leaf)
    leaf = _BN.get(leaf, leaf)
    return f"{module}.{leaf}" if leaf in ("weight", "bias", "running_mean", "running_var") else None


def _keras(name: str) -> str | None:
    """keras.applications.ResNet50 (keras/applications/resnet.py): convS_blockB_K_{conv,bn}, K = 0 the projection."""
    if match := re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)/(\w+)", name):
        stage, block, number, kind, leaf = match.groups()
        return _leaf(_unit(str(int(stage) - 1), str(int(block) - 1), kind, number), leaf)
    if match := re.fullmatch(r"(conv1_conv|conv1_bn|predictions)/(\w+)", name):
        return _leaf({"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}[match[1]], match[2])
    return None


def _old_keras(name: str) -> str | None:
    """Keras's ResNet50 until 2018 (keras_applications/resnet50.py): resSb_branch2a, bn…; _branch1 the projection."""
    if match := re.fullmatch(r"(res|bn)([2-5])([a-f])_branch(1|2[abc])/(\w+)", name):
        part, stage, letter, branch, leaf = match.groups()
        number = "0" if branch == "1" else str("abc".index(branch[1]) + 1)
        kind = "conv" if part == "res" else "bn"
        return _leaf(_unit(str(int(stage) - 1), str("abcdef".index(letter)), kind, number), leaf)
    if match := re.fullmatch(r"(conv1|bn_conv1|fc1000|predictions)/(\w+)", name):
        return _leaf({"conv1": "conv1", "bn_conv1": "bn1"}.get(match[1], "fc"), match[2])
    return None


def _keras_v2(name: str) -> str | None:
    """keras.applications.ResNet50V2 → the names of `networks.resnet50v2`."""
    parts = {
        "preact_bn": "preact",
        "1_conv": "reduce",
        "1_bn": "reduce_bn",
        "2_conv": "spatial",
        "2_bn": "spatial_bn",
        "3_conv": "expand",
        "0_conv": "shortcut",
    }
    if match := re.fullmatch(r"conv([2-5])_block(\d+)_(preact_bn|[0-3]_conv|[12]_bn)/(\w+)", name):
        stage, block, part, leaf = match.groups()
        return _leaf(f"layer{int(stage) - 1}.{int(block) - 1}.{parts[part]}", leaf)
    if match := re.fullmatch(r"(conv1_conv|post_bn|predictions)/(\w+)", name):
        return _leaf({"conv1_conv": "stem", "post_bn": "norm", "predictions": "fc"}[match[1]], match[2])
    return None


def _hugging_face(name: str) -> str | None:
    """transformers' ResNetForImageClassification (models/resnet/modeling_resnet.py)."""
    parts = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
    if match := re.fullmatch(r"resnet\.embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{parts[match[1]][0]}1.{match[2]}"
    if match := re.fullmatch(
        r"resnet\.encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.([0-2])\.(convolution|normalization)\.(\w+)", name
    ):
        stage, block, layer, part, leaf = match.groups()
        return f"layer{int(stage) + 1}.{block}.{parts[part][0]}{int(layer) + 1}.{leaf}"
    if match := re.fullmatch(
        r"resnet\.encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)", name
    ):
        stage, block, part, leaf = match.groups()
        return f"layer{int(stage) + 1}.{block}.downsample.{parts[part][1]}.{leaf}"
    if match := re.fullmatch(r"classifier\.1\.(\w+)", name):
        return f"fc.{match[1]}"
    return None


def _switches(switches: ResNetSwitches) -> Told:
    """All four switches, as the family has them."""
    return Told(
        stride_in=Decision(switches.stride_in, _FAMILY),
        stem=Decision(switches.stem, _FAMILY),
        pool=Decision(switches.pool, _FAMILY),
        epsilon=Decision(switches.epsilon, _FAMILY),
    )


FAMILIES = (
    Family(
        "the original TensorFlow ResNet-50",
        re.compile(r"(?:^|/)block\d/bottlencek\d+/"),
        _original,
        _switches(ResNetSwitches(stride_in="1x1", stem="same", pool="ceil", epsilon=1e-3)),
        channels_last=True,
    ),
    Family(
        "TF-slim resnet_v1_50",
        re.compile(r"^resnet_v1_50/block\d/unit_\d+/bottleneck_v1/"),
        _slim,
        # Its stride is in the 3×3 of a stage's last unit: it leaves the points that the next first 1×1 would.
        _switches(ResNetSwitches(stride_in="1x1", stem="symmetric", pool="ceil", epsilon=1e-5)),
        channels_last=True,
    ),
    Family(
        # Before Keras's ResNet50, whose names it has too.
        "Keras ResNet50V2",
        re.compile(r"^conv\d_block\d+_preact_bn/"),
        _keras_v2,
        Told(
            architecture=Decision("resnet50v2", "its layers"),
            epsilon=Decision(1.001e-5, _FAMILY),
            preprocessing=Decision(PRESETS["keras-v2"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Keras ResNet50",
        re.compile(r"^conv\d_block\d+_\d_conv/"),
        _keras,
        replace(
            _switches(ResNetSwitches(stride_in="1x1", epsilon=1.001e-5)),
            preprocessing=Decision(PRESETS["keras"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Keras ResNet50, old names",
        re.compile(r"^res\d[a-f]_branch2a/"),
        _old_keras,
        # keras_applications padded the pool later, under the same names: only a file's config tells.
        replace(
            _switches(ResNetSwitches(stride_in="1x1", pool="valid", epsilon=1e-3)),
            pool=Decision("valid", _FAMILY, is_assumed=True),
            preprocessing=Decision(PRESETS["keras"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Hugging Face ResNetForImageClassification",
        re.compile(r"^resnet\.embedder\.embedder\."),
        _hugging_face,
        # Older files have the stride in the 1×1; their config.json says so, and without one v1.5 is what it means.
        _switches(ResNetSwitches()),
        channels_last=False,
    ),
)


def find_family(names: Mapping[str, Any]) -> Family | None:
    """The family whose signature is among `names`; None for torchvision's own names."""
    for family in FAMILIES:
        if any(family.signature.search(name) for name in names):
            return family
    return None


def to_torchvision(weights: Weights, family: Family, path: Path) -> Weights:
    """`weights` under torchvision's names and in torch's axes; what the family does not name is left out.

    Raises `CheckpointError` where two entries would have one name.
    """
    renamed: dict[str, NDArray[Any]] = {}
    for stored, values in weights.items():
        name = family.rename(stored)
        if name is None:
            continue
        if name in renamed:
            raise CheckpointError(
                f"{path} holds two networks: more than one entry becomes {name}. Save the one to serve."
            )
        renamed[name] = _to_torch_axes(name, values) if family.channels_last else values
    return _fold_biases(renamed)


def _to_torch_axes(name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 4 and name.startswith("fc."):
        # A head that is a 1×1 convolution: (1, 1, in, classes).
        values = values.reshape(values.shape[-2:]) if values.shape[:2] == (1, 1) else values
    if values.ndim == 4:
        return np.ascontiguousarray(values.transpose(_KERNEL_AXES))
    return np.ascontiguousarray(values.T) if values.ndim == 2 else values


def _fold_biases(weights: dict[str, NDArray[Any]]) -> Weights:
    """A convolution's bias goes into the mean of the normalisation behind it: (x + b) - mean = x - (mean - b)."""
    for name in [name for name in weights if re.search(r"(?:^|\.)(?:conv\d|downsample\.0)\.bias$", name)]:
        bias = weights.pop(name)
        norm = name.removesuffix(".bias").replace("conv", "bn").replace("downsample.0", "downsample.1")
        mean = f"{norm}.running_mean"
        if mean in weights:
            weights[mean] = weights[mean] - bias
    return weights
