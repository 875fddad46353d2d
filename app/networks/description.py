"""A network as data: its steps in order, each with its layer, its inputs and the shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ..layers import Layer

INPUT = "input"
"""The name of the network's input, `(N, 3, H, W)`, among the inputs of steps."""

Zeros = tuple[int, int, int, int]
"""Rows and columns of zeros: top, left, bottom, right."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a network. All facts of its layer are given."""

    name: str
    """Its tensors in a checkpoint are `name.weight`, `name.bias`, …"""
    operation: Layer | Literal["sum", "flatten"]
    """flatten: `(N, C, H, W)` to `(N, C·H·W)`."""
    inputs: tuple[str, ...]
    """The names of the steps whose results it takes, or `INPUT`."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Its tensors: weight, bias, running_mean, running_var."""
    groups: int = 1
    """Of a convolution."""
    zeros: Zeros | Literal["same"] | None = None
    """Put around its input before the layer's own padding. same: as many as TensorFlow's SAME puts there."""

    @property
    def kind(self) -> str:
        return self.operation.kind if isinstance(self.operation, Layer) else self.operation

    @property
    def layer(self) -> Layer:
        assert isinstance(self.operation, Layer)
        return self.operation

    def shape(self, leaf: str) -> tuple[int, ...] | None:
        return dict(self.shapes).get(leaf)


@dataclass(frozen=True, slots=True)
class Description:
    """A network of one input and one output, the result of its last step: `(N, classes)`."""

    steps: tuple[Step, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor that a checkpoint has of it, by name."""
        return {f"{step.name}.{leaf}": shape for step in self.steps for leaf, shape in step.shapes}

    def computed(self) -> tuple[Step, ...]:
        """The steps without those that do nothing; a step that took the result of such a one takes its input."""
        names: dict[str, str] = {}
        steps = []
        for step in self.steps:
            inputs = tuple(names.get(name, name) for name in step.inputs)
            if step.kind == "identity":
                names[step.name] = inputs[0]
            else:
                steps.append(replace(step, inputs=inputs))
        return tuple(steps)


def same_zeros(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME along an axis, before and behind: the output is ⌈size/stride⌉, an odd zero goes behind."""
    needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return needed // 2, needed - needed // 2


def uses(steps: tuple[Step, ...]) -> Counter[str]:
    """How many inputs each result is."""
    return Counter(name for step in steps for name in step.inputs)


class Chain:
    """Steps one after another: each takes the result of the one before, unless it is told otherwise."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self.last = INPUT
        """The name of the last step."""

    def add(self, step: Step) -> None:
        self._steps.append(step)
        self.last = step.name

    def layer(self, layer: Layer, zeros: Zeros | None = None) -> None:
        """A layer without tensors."""
        self.add(Step(layer.name, layer, (self.last,), zeros=zeros))

    def convolution(
        self,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
        zeros: Zeros | Literal["same"] | None = None,
        source: str | None = None,
    ) -> None:
        layer = Layer(name, "convolution", None, (stride, stride), (padding, padding), (1, 1))
        shapes = (("weight", (outputs, inputs // groups, kernel, kernel)), *((("bias", (outputs,)),) if bias else ()))
        self.add(Step(name, layer, (source or self.last,), shapes, groups, zeros))

    def batch_norm(self, name: str, channels: int, epsilon: float, source: str | None = None) -> None:
        leaves = ("weight", "bias", "running_mean", "running_var")
        shapes = tuple((leaf, (channels,)) for leaf in leaves)
        self.add(Step(name, Layer(name, "batch_norm", value=epsilon), (source or self.last,), shapes))

    def sum(self, name: str, *sources: str) -> None:
        self.add(Step(name, "sum", sources))

    def classifier(self, name: str, inputs: int, classes: int) -> None:
        """One dense layer behind the flattened features."""
        self.add(Step("flatten", "flatten", (self.last,)))
        shapes = (("weight", (classes, inputs)), ("bias", (classes,)))
        self.add(Step(name, Layer(name, "linear"), (self.last,), shapes))

    def description(self) -> Description:
        return Description(tuple(self._steps))


def layers(steps: tuple[Step, ...]) -> Iterator[Layer]:
    """The layers of `steps`, by their names."""
    for step in steps:
        if isinstance(step.operation, Layer):
            yield step.operation
