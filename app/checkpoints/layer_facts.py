"""The layers of a ResNet-50's body as a file states them, compared with torchvision's: switches and other differences.

A body is a mapping from torchvision's names to layers with all their facts. Each activation has its own name, `relu`
after the stem's normalisation and `layer1.0.act1…3` in a block, since a file may state each of them. torchvision has
one module for the three.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..layers import Layer, ResNetSwitches
from ..networks import ResNet, describe_resnet, layers
from .base import Decision, Told

Body = Mapping[str, Layer]
BLOCKS = (3, 4, 6, 3)


def convolution(
    name: str,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
) -> Layer:
    return Layer(name, "convolution", None, _pair(stride), _pair(padding), _pair(dilation))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@dataclass(frozen=True, slots=True)
class Shape:
    """Facts of a body's layers that the names of the weights show."""

    is_deep: bool = False
    """Whether it has timm's stem of three convolutions (resnet50c, d, s, t)."""
    is_pooled: bool = False
    """Whether a projection has a pool in front of its convolution (resnet50d, t)."""

    @classmethod
    def of(cls, names: Iterable[str]) -> Shape:
        """The shape of a body whose weights have `names`, which are torchvision's."""
        names = set(names)
        return cls("conv1.0.weight" in names, "layer1.0.downsample.2.weight" in names)


def expected_body(shape: Shape, switches: ResNetSwitches | None = None) -> dict[str, Layer]:
    """The layers of the ResNet-50 with these switches, by name. The widths of a deep stem do not affect them."""
    resnet = ResNet(BLOCKS, stem=(32, 32, 64) if shape.is_deep else None, is_pooled=shape.is_pooled)
    steps = describe_resnet(resnet, 1, switches or ResNetSwitches()).steps
    return {layer.name: layer for layer in layers(steps) if layer.kind != "linear"}


def told_by_body(body: Body, shape: Shape, source: str, has_same_stem: bool = False) -> Told:
    """The switches that fit `body` best, and as `altered` its layers that differ from them."""
    switches = ResNetSwitches()
    if not shape.is_deep:
        switches = ResNetSwitches(
            stride_in=_stride_in(body) or "3x3",
            stem="same" if has_same_stem else "symmetric",
            pool=_pool(body) or "symmetric",
            epsilon=_epsilon(body) or 1e-5,
        )
    expected = expected_body(shape, switches)
    altered = [layer for name, layer in body.items() if name in expected and layer != expected[name]]
    told = Told(altered=Decision(tuple(_merged(altered)), source))
    if shape.is_deep:
        return told
    return replace(
        told,
        stride_in=Decision(switches.stride_in, source) if _states(body, "layer2.0.conv1", "layer2.0.conv2") else None,
        stem=Decision(switches.stem, source) if _states(body, "conv1") else None,
        pool=Decision(switches.pool, source) if _states(body, "maxpool") else None,
        epsilon=Decision(switches.epsilon, source) if _states(body, "bn1") else None,
    )


def _states(body: Body, *names: str) -> bool:
    return all(name in body for name in names)


def _stride_in(body: Body) -> Literal["3x3", "1x1"] | None:
    """The position of the stride in most stages."""
    stages = ("layer2.0", "layer3.0", "layer4.0")
    found = Counter(
        tuple(layer.stride if (layer := body.get(f"{stage}.{name}")) else None for name in ("conv1", "conv2"))
        for stage in stages
    )
    is_first = found[((2, 2), (1, 1))] > found[((1, 1), (2, 2))]
    return "1x1" if is_first else "3x3"


def _pool(body: Body) -> Literal["symmetric", "ceil", "valid"] | None:
    pool = body.get("maxpool")
    for name in ("symmetric", "ceil", "valid"):
        if pool == expected_body(Shape(), ResNetSwitches(pool=name))["maxpool"]:
            return name
    return None


def _epsilon(body: Body) -> float | None:
    """The epsilon of most normalisations."""
    found = Counter(layer.value for layer in body.values() if layer.kind == "batch_norm")
    return found.most_common(1)[0][0] if found else None


def _merged(altered: list[Layer]) -> Iterator[Layer]:
    """`altered` with the three activations of a block merged into one `relu` if they are equal."""
    by_name = {layer.name: layer for layer in altered}
    for layer in altered:
        block, _, part = layer.name.rpartition(".")
        if not part.startswith("act"):
            yield layer
            continue
        three = [by_name.get(f"{block}.act{number}") for number in (1, 2, 3)]
        is_one = all(each is not None and replace(each, name="") == replace(layer, name="") for each in three)
        if not is_one:
            yield layer
        elif part == "act1":
            yield replace(layer, name=f"{block}.relu")
