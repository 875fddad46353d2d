"""Weight names of a ResNet-50 in each library's naming convention, translated to torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Callable

Rename = Callable[[str], str | None]
"""Stored name → torchvision's name, or None for a tensor outside the body (optimizers, counters, other heads)."""

_LEAVES = {
    **{"kernel": "weight", "weights": "weight", "biases": "bias"},
    **{"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"},
}


def _unit(stage: str, block: str, kind: str, number: str) -> str:
    """`layer{stage}.{block}.{conv|bn}{number}`; numbers 0 and 4 and "shortcut" are the projection."""
    if number in ("0", "4", "shortcut"):
        return f"layer{stage}.{block}.downsample.{0 if kind == 'conv' else 1}"
    return f"layer{stage}.{block}.{kind}{number}"


def from_original(name: str) -> str | None:
    """A TF1 class of He et al. (2015): conv1, bn1, block2…5/bottlencekN/{conv,bn}_K (spelt so)."""
    if match := re.fullmatch(r"block([2-5])/bottlencek(\d+)/(conv|bn)_([1-4])/(\w+)", name):
        stage, block, kind, number, leaf = match.groups()
        return _leaf(_unit(str(int(stage) - 1), str(int(block) - 1), kind, number), leaf)
    if match := re.fullmatch(r"(conv1|bn1)/(\w+)", name):
        return _leaf(match[1], match[2])
    return None


def from_slim(name: str) -> str | None:
    """TF-slim's resnet_v1_50 (tf_slim/nets/resnet_v1.py). Its head is a 1×1 convolution."""
    if match := re.fullmatch(
        r"block([1-4])/unit_(\d+)/bottleneck_v1/(?:conv([1-3])|(shortcut))/(BatchNorm/)?(\w+)", name
    ):
        stage, block, number, shortcut, norm, leaf = match.groups()
        return _leaf(_unit(stage, str(int(block) - 1), "bn" if norm else "conv", number or shortcut), leaf)
    if match := re.fullmatch(r"conv1/(BatchNorm/)?(\w+)", name):
        return _leaf("bn1" if match[1] else "conv1", match[2])
    return None


def _leaf(module: str, leaf: str) -> str | None:
    """The torch name of a TensorFlow variable; None for other variables, which are the optimizer's."""
    leaf = _LEAVES.get(leaf, leaf)
    return f"{module}.{leaf}" if leaf in ("weight", "bias", "running_mean", "running_var") else None


def from_keras(name: str) -> str | None:
    """keras.applications.ResNet50 (keras/applications/resnet.py): convS_blockB_K_{conv,bn}, the projection at K = 0."""
    if match := re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)/(\w+)", name):
        stage, block, number, kind, leaf = match.groups()
        return _leaf(_unit(str(int(stage) - 1), str(int(block) - 1), kind, number), leaf)
    if match := re.fullmatch(r"conv1_(conv|bn)/(\w+)", name):
        return _leaf(f"{match[1]}1", match[2])
    return None


def from_old_keras(name: str) -> str | None:
    """Keras's ResNet50 until 2018 (keras_applications/resnet50.py): resSb_branch2a, bn…; the projection is _branch1."""
    if match := re.fullmatch(r"(res|bn)([2-5])([a-f])_branch(1|2[abc])/(\w+)", name):
        part, stage, letter, branch, leaf = match.groups()
        number = "0" if branch == "1" else str("abc".index(branch[1]) + 1)
        kind = "conv" if part == "res" else "bn"
        return _leaf(_unit(str(int(stage) - 1), str("abcdef".index(letter)), kind, number), leaf)
    if match := re.fullmatch(r"(bn_)?conv1/(\w+)", name):
        return _leaf("bn1" if match[1] else "conv1", match[2])
    return None


def from_keras_v2(name: str) -> str | None:
    """keras.applications.ResNet50V2, to the names of `networks.resnet50v2`."""
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


def from_hugging_face(name: str) -> str | None:
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


# Parameters and statistics. Counters and notes of tools have other names.
_TORCH_LEAF = re.compile(r"\.(?:weight|bias|running_mean|running_var)$")


def from_torchvision(name: str) -> str | None:
    """torchvision's and timm's own names (torchvision/models/resnet.py)."""
    return name if re.match(r"(?:conv1|bn1|layer[1-4])\.", name) and _TORCH_LEAF.search(name) else None


# The children of torchvision's ResNet by their positions in a Sequential; 2, 3 and 8 have no weights.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def from_sequential(name: str) -> str | None:
    """nn.Sequential(*list(resnet.children())[:-1]), the backbone in Lightning's documentation and in fastai."""
    place, _, rest = name.partition(".")
    return f"{_CHILDREN[place]}.{rest}" if place in _CHILDREN and _TORCH_LEAF.search(name) else None


def leaf_of_torch(name: str) -> str:
    """The torch name for TensorFlow's name of a variable outside the body: `dense/kernel` → `dense.weight`."""
    module, _, leaf = name.rpartition("/")
    return f"{module}.{_LEAVES.get(leaf, leaf)}" if module else _LEAVES.get(leaf, leaf)
