"""Layers of a network as a checkpoint states them, where they are not torchvision's, and changes to its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .types import Preprocessing, figures

LayerKind = Literal[
    "convolution",
    "linear",
    "batch_norm",
    "layer_norm",
    "max_pool",
    "average_pool",
    "adaptive_max_pool",
    "adaptive_average_pool",
    "identity",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "gelu_tanh",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "softplus",
    "softsign",
    "tanh",
    "sigmoid",
]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as a checkpoint states it, where it is not torchvision's, or in a head of several layers.

    A field that is None is as torchvision's ResNet-50 has it.
    """

    name: str
    """Of the body: torchvision's name, such as `layer4.0.conv2`. Of a head: the name its tensors are stored under."""
    kind: LayerKind
    kernel: tuple[int, int] | None = None
    """Of an adaptive pool: the size of what it gives, one point unless it is given."""
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    dilation: tuple[int, int] | None = None
    ceil_mode: bool = False
    value: float | None = None
    """A normalisation's epsilon, a leaky ReLU's slope, an ELU's alpha."""
    count_include_pad: bool = True
    """Of an average pool: whether the zeros of its padding count."""

    def describe(self) -> str:
        """One line for a person."""
        facts = [
            f"{name} {value[0]}×{value[1]}"
            for name in ("kernel", "stride", "padding", "dilation")
            if (value := getattr(self, name)) is not None
        ]
        facts += ["ceil mode"] if self.ceil_mode else []
        facts += [] if self.count_include_pad else ["without its padding"]
        facts += [f"{self.value:g}"] if self.value is not None else []
        return " ".join([self.kind, *facts])


@dataclass(frozen=True, slots=True)
class InputChange:
    """What a checkpoint's own code does to its input before the network: `scale * input + shift` of each channel."""

    scale: tuple[float, float, float]
    """In the order of the network's channels, as `shift` is."""
    shift: tuple[float, float, float]
    is_reversed: bool = False
    """Whether the channels are put in the opposite order first."""

    @classmethod
    def of_normalisation(cls, mean: Sequence[float], std: Sequence[float]) -> InputChange:
        """`(input - mean) / std`"""
        first, second, third = (1 / each for each in std)
        one, two, three = (-a / b for a, b in zip(mean, std, strict=True))
        return cls((first, second, third), (one, two, three))

    def behind(self, preprocessing: Preprocessing) -> Preprocessing:
        """The preprocessing that gives the network what this makes of the images of another one."""
        step = -1 if self.is_reversed else 1
        mean, std = np.array(preprocessing.mean[::step]), np.array(preprocessing.std[::step])
        scale, shift = np.array(self.scale), np.array(self.shift)
        return replace(
            preprocessing,
            mean=_three(mean - shift * std / scale),
            std=_three(std / scale),
            is_bgr=preprocessing.is_bgr != self.is_reversed,
        )

    def describe(self) -> str:
        """One line for a person."""
        order = ", channels reversed" if self.is_reversed else ""
        return f"input × {figures(self.scale)} + {figures(self.shift)}{order}"


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


@dataclass(frozen=True, slots=True)
class ResNetSwitches:
    """What the keys and shapes of a ResNet-50's weights do not tell; the defaults are torchvision's."""

    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Which convolution of a stage's first block has the stride: v1.5's 3×3, or the first 1×1 of He et al. (2015)."""
    stem: Literal["symmetric", "same"] = "symmetric"
    """Padding of the 7×7 stem: 3 all around, or TensorFlow's SAME."""
    pool: Literal["symmetric", "ceil", "valid"] = "symmetric"
    """Padding of the 3×3 pool: 1 all around, at the end where it is needed (TensorFlow's SAME), or none."""
    epsilon: float = 1e-5
    """What batch normalisation adds to the variance."""
    altered: tuple[Layer, ...] = ()
    """Layers of the body that are not torchvision's; they come after the switches above."""
    head: tuple[Layer, ...] = ()
    """The classifier's layers where it is not one dense layer; the weights of layer i are `fc.i.…`."""

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"stride in the {self.stride_in.replace('x', '×')}, stem padding {self.stem}, pool padding {self.pool}, "
            f"epsilon {self.epsilon:g}"
        )
