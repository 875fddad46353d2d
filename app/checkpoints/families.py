"""Families of checkpoints (timm, Hugging Face, Keras, …): recognised by signature, renamed to torchvision's names.

Rows of a table: a new family is one row. Each rule's origin stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import ResNetSwitches
from .base import Decision, Told, Weights
from .presets import PRESETS

Rename = Callable[[str], str | None]
"""A name as stored → torchvision's, or None for what inference does not need (optimizers, counters, other heads)."""

# HWIO → OIHW, which TensorFlow's convolution kernels need.
_KERNEL_AXES = (3, 2, 0, 1)
_FAMILY = "the family's way"
_LEAVES = {
    **{"kernel": "weight", "weights": "weight", "biases": "bias"},
    **{"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"},
}


@dataclass(frozen=True, slots=True)
class Family:
    """One way of naming a ResNet-50's weights."""

    name: str
    anchor: re.Pattern[str]
    """Finds a name that only this family has; the group `scope` is what stands before the family's own names."""
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
    """He et al. (2015) as a TF1 class: conv1, bn1, block2…5/bottlencekN/{conv,bn}_K (spelt so)."""
    if match := re.fullmatch(r"block([2-5])/bottlencek(\d+)/(conv|bn)_([1-4])/(\w+)", name):
        stage, block, kind, number, leaf = match.groups()
        return _leaf(_unit(str(int(stage) - 1), str(int(block) - 1), kind, number), leaf)
    if match := re.fullmatch(r"(conv1|bn1)/(\w+)", name):
        return _leaf(match[1], match[2])
    return None


def _slim(name: str) -> str | None:
    """TF-slim's resnet_v1_50 (tf_slim/nets/resnet_v1.py): its head is a 1×1 convolution."""
    if match := re.fullmatch(
        r"block([1-4])/unit_(\d+)/bottleneck_v1/(?:conv([1-3])|(shortcut))/(BatchNorm/)?(\w+)", name
    ):
        stage, block, number, shortcut, norm, leaf = match.groups()
        return _leaf(_unit(stage, str(int(block) - 1), "bn" if norm else "conv", number or shortcut), leaf)
    if match := re.fullmatch(r"conv1/(BatchNorm/)?(\w+)", name):
        return _leaf("bn1" if match[1] else "conv1", match[2])
    return None


def _leaf(module: str, leaf: str) -> str | None:
    """A variable's own name → torch's. Anything else there is an optimizer's."""
    leaf = _LEAVES.get(leaf, leaf)
    return f"{module}.{leaf}" if leaf in ("weight", "bias", "running_mean", "running_var") else None


def _keras(name: str) -> str | None:
    """keras.applications.ResNet50 (keras/applications/resnet.py): convS_blockB_K_{conv,bn}, K = 0 the projection."""
    if match := re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)/(\w+)", name):
        stage, block, number, kind, leaf = match.groups()
        return _leaf(_unit(str(int(stage) - 1), str(int(block) - 1), kind, number), leaf)
    if match := re.fullmatch(r"conv1_(conv|bn)/(\w+)", name):
        return _leaf(f"{match[1]}1", match[2])
    return None


def _old_keras(name: str) -> str | None:
    """Keras's ResNet50 until 2018 (keras_applications/resnet50.py): resSb_branch2a, bn…; _branch1 the projection."""
    if match := re.fullmatch(r"(res|bn)([2-5])([a-f])_branch(1|2[abc])/(\w+)", name):
        part, stage, letter, branch, leaf = match.groups()
        number = "0" if branch == "1" else str("abc".index(branch[1]) + 1)
        kind = "conv" if part == "res" else "bn"
        return _leaf(_unit(str(int(stage) - 1), str("abcdef".index(letter)), kind, number), leaf)
    if match := re.fullmatch(r"(bn_)?conv1/(\w+)", name):
        return _leaf("bn1" if match[1] else "conv1", match[2])
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
    if match := re.fullmatch(r"(conv1_conv|post_bn)/(\w+)", name):
        return _leaf({"conv1_conv": "stem", "post_bn": "norm"}[match[1]], match[2])
    return None


def _hugging_face(name: str) -> str | None:
    """transformers' ResNetForImageClassification (models/resnet/modeling_resnet.py)."""
    parts = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
    if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name):
        return f"{parts[match[1]][0]}1.{match[2]}"
    if match := re.fullmatch(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.([0-2])\.(convolution|normalization)\.(\w+)", name
    ):
        stage, block, layer, part, leaf = match.groups()
        return f"layer{int(stage) + 1}.{block}.{parts[part][0]}{int(layer) + 1}.{leaf}"
    if match := re.fullmatch(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)", name
    ):
        stage, block, part, leaf = match.groups()
        return f"layer{int(stage) + 1}.{block}.downsample.{parts[part][1]}.{leaf}"
    return None


# Parameters and statistics; counters and what tools note beside a layer have other names.
_TORCH_LEAF = re.compile(r"\.(?:weight|bias|running_mean|running_var)$")


def _torchvision(name: str) -> str | None:
    """torchvision's and timm's own names (torchvision/models/resnet.py)."""
    return name if re.match(r"(?:conv1|bn1|layer[1-4])\.", name) and _TORCH_LEAF.search(name) else None


# The children of torchvision's ResNet, by their places in a Sequential of them; 2, 3 and 8 have no weights.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _children(name: str) -> str | None:
    """nn.Sequential(*list(resnet.children())[:-1]), as Lightning's documentation and fastai cut a backbone."""
    place, _, rest = name.partition(".")
    return f"{_CHILDREN[place]}.{rest}" if place in _CHILDREN and _TORCH_LEAF.search(name) else None


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
        re.compile(r"^(?P<scope>(?:.*/)?)block2/bottlencek1/conv_1/kernel$"),
        _original,
        _switches(ResNetSwitches(stride_in="1x1", stem="same", pool="ceil", epsilon=1e-3)),
        channels_last=True,
    ),
    Family(
        "TF-slim resnet_v1_50",
        re.compile(r"^(?P<scope>(?:.*/)?)block1/unit_1/bottleneck_v1/conv1/weights$"),
        _slim,
        # Its stride is in the 3×3 of a stage's last unit: it leaves the points that the next first 1×1 would.
        _switches(ResNetSwitches(stride_in="1x1", stem="symmetric", pool="ceil", epsilon=1e-5)),
        channels_last=True,
    ),
    Family(
        # Before Keras's ResNet50, whose names it has too.
        "Keras ResNet50V2",
        re.compile(r"^(?P<scope>(?:.*/)?)conv2_block1_preact_bn/gamma$"),
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
        re.compile(r"^(?P<scope>(?:.*/)?)conv2_block1_1_conv/kernel$"),
        _keras,
        replace(
            _switches(ResNetSwitches(stride_in="1x1", epsilon=1.001e-5)),
            preprocessing=Decision(PRESETS["keras"], _FAMILY),
        ),
        channels_last=True,
    ),
    Family(
        "Keras ResNet50, old names",
        re.compile(r"^(?P<scope>(?:.*/)?)res2a_branch2a/kernel$"),
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
        re.compile(r"^(?P<scope>(?:.*\.)?)embedder\.embedder\.convolution\.weight$"),
        _hugging_face,
        # Older files have the stride in the 1×1; their config.json says so, and without one v1.5 is what it means.
        _switches(ResNetSwitches()),
        channels_last=False,
    ),
    Family(
        "torchvision",
        re.compile(r"^(?P<scope>(?:.*\.)?)layer4\.(?:2\.conv3|1\.conv2)\.weight$"),
        _torchvision,
        Told(),
        channels_last=False,
    ),
    Family(
        "torchvision, its children in a Sequential",
        re.compile(r"^(?P<scope>(?:.*\.)?)7\.2\.conv3\.weight$"),
        _children,
        Told(),
        channels_last=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a checkpoint a network is: a family's names behind a scope."""

    family: Family
    scope: str
    """With its separator at the end; "" where the names stand bare."""

    def rename(self, name: str) -> str | None:
        """A stored name → torchvision's; None for what is not of the body."""
        return self.family.rename(name.removeprefix(self.scope)) if name.startswith(self.scope) else None

    def rename_module(self, name: str) -> str | None:
        """The same of a module; those without weights keep their own names behind the scope."""
        if not name.startswith(self.scope):
            return None
        bare = name.removeprefix(self.scope)
        renamed = self.family.rename(f"{bare}.weight")
        return renamed.removesuffix(".weight") if renamed else bare


def find_places(names: Iterable[str]) -> list[Place]:
    """The networks of the first family whose anchor is among `names`, one for each scope."""
    names = list(names)
    for family in FAMILIES:
        scopes = {match["scope"] for name in names if (match := family.anchor.search(name))}
        if scopes:
            return [Place(family, scope) for scope in sorted(scopes, key=lambda scope: (len(scope), scope))]
    return []


def to_torch_axes(values: NDArray[Any]) -> NDArray[Any]:
    """A kernel HWIO → OIHW, a dense weight `(in, out)` → `(out, in)`."""
    if values.ndim == 4:
        return np.ascontiguousarray(values.transpose(_KERNEL_AXES))
    return np.ascontiguousarray(values.T) if values.ndim == 2 else values


def leaf_of_torch(name: str) -> str:
    """TensorFlow's name of a variable that is not of the body → torch's: `dense/kernel` → `dense.weight`."""
    module, _, leaf = name.rpartition("/")
    return f"{module}.{_LEAVES.get(leaf, leaf)}" if module else _LEAVES.get(leaf, leaf)


def fold_biases(weights: dict[str, NDArray[Any]]) -> Weights:
    """A convolution's bias goes into the mean of the normalisation behind it: (x + b) - mean = x - (mean - b)."""
    for name in [name for name in weights if re.search(r"(?:^|\.)(?:conv\d|downsample\.0)\.bias$", name)]:
        bias = weights.pop(name)
        norm = name.removesuffix(".bias").replace("conv", "bn").replace("downsample.0", "downsample.1")
        mean = f"{norm}.running_mean"
        if mean in weights:
            weights[mean] = weights[mean] - bias
    return weights
