"""Names of unnamed Keras 3 weights, by the order in which Keras lists the layers of its ResNets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError

_BLOCKS = ((2, 3), (3, 4), (4, 6), (5, 3))
_OLD_PROJECTION_INPUTS = 128  # of the third convolution of conv3_block1, if the shortcut is listed last


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of one layer in a Keras 3 file."""

    place: str
    """`layers/functional/layers/conv2d_1`."""
    name: str | None
    """The name in the file; older Keras 3 writes none."""
    values: list[NDArray[Any]]

    @property
    def kind(self) -> str:
        """The layer's class, as spelt in `place`: `batch_normalization`."""
        return re.sub(r"_\d+$", "", self.place.split("/")[-1])

    @property
    def number(self) -> int:
        return number_of(self.place)

    @property
    def model(self) -> str:
        """The place of the model that contains it."""
        return self.place.rsplit("/", 2)[0] if self.place.count("/") > 1 else ""


def is_counted(places: Iterable[str]) -> bool:
    """Whether all layers are named after their classes, so that only their order distinguishes them."""
    bare = {"conv2d", "batch_normalization", "dense", "layer_normalization", "normalization"}
    return all(place.split("/")[-1].rstrip("0123456789").rstrip("_") in bare for place in places)


def names_by_order(layers: Sequence[Variables], path: Path) -> dict[str, str]:
    """Place → name for unnamed layers, by the order in which Keras lists the layers of its ResNets.

    Layers after the body, or in another model, are named by their place.
    """
    model = Counter(layer.model for layer in layers if layer.kind == "conv2d").most_common(1)
    body = [layer for layer in layers if model and layer.model == model[0][0]]

    def of(kind: str) -> list[Variables]:
        return sorted((layer for layer in body if layer.kind == kind), key=lambda layer: layer.number)

    convolutions, norms = of("conv2d"), of("batch_normalization")
    heads = sum(layer.kind == "dense" for layer in layers)
    # ResNet50V2's convolutions inside a block have no bias.
    is_v2 = len(convolutions) == 53 and len(convolutions[1].values) == 1
    if len(convolutions) != 53 or len(norms) < (49 if is_v2 else 53) or not heads:
        raise CheckpointError(
            f"{path} names no layers and has {len(convolutions)} convolutions, {len(norms)} normalisations and {heads} "
            f"dense layers. Expected 53, 53 or more and 1 or more (ResNet50), or 53, 49 or more and 1 or more "
            f"(ResNet50V2). Save the model as .keras."
        )
    if is_v2:
        names = ["conv1_conv", *_block_names("1203", "123", "conv")]
        norm_names = [*_block_names(("preact", "1", "2"), ("preact", "1", "2"), "bn"), "post_bn"]
    else:
        # conv1; in conv2: 1, 2, 0, 3, then two blocks of three; in conv3: 1, 2, then the one that differs
        third = convolutions[1 + 4 + 3 + 3 + 2].values[0]
        is_old = third.ndim == 4 and third.shape[2] == _OLD_PROJECTION_INPUTS
        first = "1230" if is_old else "1203"
        names = ["conv1_conv", *_block_names(first, "123", "conv")]
        norm_names = ["conv1_bn", *_block_names(first, "123", "bn")]
        if is_old:
            names, norm_names = [_old_name(name) for name in names], [_old_name(name) for name in norm_names]
    found = {layer.place: layer.place for layer in layers}
    found |= {layer.place: name for layer, name in zip(convolutions, names, strict=True)}
    return found | {layer.place: name for layer, name in zip(norms, norm_names, strict=False)}


def number_of(place: str) -> int:
    digits = place.rsplit("_", 1)[-1]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _block_names(first: Sequence[str], other: Sequence[str], kind: str) -> Iterator[str]:
    for stage, blocks in _BLOCKS:
        for block in range(1, blocks + 1):
            for part in first if block == 1 else other:
                yield f"conv{stage}_block{block}_{part}_{kind}"


def _old_name(name: str) -> str:
    """`conv2_block1_0_conv` → `res2a_branch1`, `conv2_block1_3_bn` → `bn2a_branch2c`."""
    if name.startswith("conv1_"):
        return "conv1" if name.endswith("conv") else "bn_conv1"
    stage, block, part, kind = name.removeprefix("conv").replace("block", "").split("_")
    branch = "1" if part == "0" else f"2{'abc'[int(part) - 1]}"
    return f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_branch{branch}"
