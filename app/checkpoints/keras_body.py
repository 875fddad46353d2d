"""A Keras graph's body compared with ResNet-50, layer by layer, from its last block to its stem.

Supported differences become a switch or an altered layer; any other difference is refused by the layer's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..layers import Layer
from .keras_graph import KerasGraph, Node, Tensor
from .keras_layers import (
    Activated,
    Pads,
    Size,
    Window,
    behind_inert,
    named_activation,
    read_activation,
    read_window,
    zero_pads,
)

STAGES = ((1, 3), (2, 4), (3, 6), (4, 3))
NO_PADS: Pads = (0, 0, 0, 0)
RELU = Activated("relu")
_NOT_THERE = "which ResNet-50 does not have there"


@dataclass(frozen=True, slots=True)
class Body:
    """Facts of the layers of a body, by torchvision's names."""

    source: Tensor
    """The input of the first convolution before its padding: the preprocessed images."""
    size: Size
    """The size of the body's output."""
    stride_in: Literal["3x3", "1x1"]
    stem: Literal["symmetric", "same"]
    pool: Literal["symmetric", "ceil", "valid"]
    epsilon: float
    altered: tuple[Layer, ...]


@dataclass(slots=True)
class Walk:
    """A walk backwards through the graph. Its findings are kept, and measured afterwards from the front."""

    graph: KerasGraph
    role: Callable[[Node], str | None]
    """A layer with weights → the name of torchvision's module (or of `networks.resnet50v2`'s)."""
    windows: list[tuple[str, Node, list[Node]]] = field(default_factory=list)
    """Convolutions and pools with the ZeroPadding2D before them, last first."""
    norms: list[tuple[str, Node]] = field(default_factory=list)
    activations: dict[str, tuple[Activated, Node]] = field(default_factory=dict)

    def norm(self, tensor: Tensor, name: str) -> Tensor:
        node = self._expect(tensor, name, "BatchNormalization")
        if node.keywords.get("training") is True:
            raise self.graph.refusal(node, "it is called with training=True, and uses each batch's own statistics")
        axis = node.options.get("axis", -1)
        if axis not in (-1, 3, [-1], [3]):
            raise self.graph.refusal(node, f"it normalises along the axis {str(axis)[:20]}, and not the channels")
        self.norms.append((name, node))
        return node.inputs[0]

    def convolution(self, tensor: Tensor, name: str) -> Tensor:
        node = self._expect(tensor, name, "Conv2D")
        options = node.options
        if options.get("groups", 1) != 1 or options.get("data_format", "channels_last") != "channels_last":
            raise self.graph.refusal(node, "it has groups, or channels first")
        if named_activation(self.graph, node).kind != "linear":
            raise self.graph.refusal(node, "it has an activation of its own before the normalisation")
        return self._padded(node, name)

    def pool(self, tensor: Tensor, name: str) -> Tensor:
        """The tensor before a pool, or the tensor itself if it comes from no pool."""
        tensor = behind_inert(tensor)
        if tensor.node.kind not in ("MaxPooling2D", "AveragePooling2D"):
            return tensor
        return self._padded(tensor.node, name)

    def _padded(self, node: Node, name: str) -> Tensor:
        tensor, pads = behind_inert(node.inputs[0]), []
        while tensor.node.kind == "ZeroPadding2D":
            pads.append(tensor.node)
            tensor = behind_inert(tensor.node.inputs[0])
        self.windows.append((name, node, pads))
        return tensor

    def activation(self, tensor: Tensor, name: str) -> Tensor:
        """The tensor before an activation of torchvision's module `name`, which is shared by a block's activations."""
        tensor = behind_inert(tensor)
        activated = read_activation(self.graph, tensor.node)
        if activated is None:
            raise self.graph.refusal(tensor.node, f"{_NOT_THERE}: an activation was expected ({name})")
        known = self.activations.setdefault(name, (activated, tensor.node))
        if known[0] != activated:
            raise self.graph.refusal(
                tensor.node, f"its activation is {activated.kind} where {known[1].name[:60]!r} has {known[0].kind}"
            )
        return tensor.node.inputs[0]

    def sum(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        tensor = behind_inert(tensor)
        node = tensor.node
        if node.kind not in ("Add", "tf.math.add", "tf.__operators__.add") or len(node.inputs) != 2:
            raise self.graph.refusal(node, f"{_NOT_THERE}: the sum of two branches was expected")
        first, second = node.inputs
        return behind_inert(first), behind_inert(second)

    def is_(self, tensor: Tensor, name: str) -> bool:
        return self.role(tensor.node) == name

    def _expect(self, tensor: Tensor, name: str, kind: str) -> Node:
        node = behind_inert(tensor).node
        if node.kind != kind or self.role(node) != name:
            raise self.graph.refusal(node, f"{_NOT_THERE}: a {kind} was expected ({name})")
        return node

    def branches(self, tensor: Tensor, main: str) -> tuple[Tensor, Tensor]:
        """The two summands, with that of the layer `main` first."""
        first, second = self.sum(tensor)
        return (first, second) if self.is_(first, main) else (second, first)

    def meet(self, first: Tensor, second: Tensor, block: str) -> Tensor:
        """The tensor where both branches of a block begin. Raises `CheckpointError` if they begin at two."""
        first, second = behind_inert(first), behind_inert(second)
        if first != second:
            raise self.graph.refusal(second.node, f"the two branches of {block} do not begin at one layer")
        return first

    def measured(self, size: Size) -> list[tuple[str, Node, Window]]:
        """The windows with their sizes, first to last. Both branches of a block start from the block's input size."""
        found: list[tuple[str, Node, Window]] = []
        given = {"": size}
        for name, node, pads in reversed(self.windows):
            block = ".".join(name.split(".")[:2]) if name.startswith("layer") else ""
            is_side = ".downsample" in name or name.endswith((".shortcut", ".skip"))
            at = given.setdefault(f"{block} start", given[""]) if is_side else given[""]
            if not is_side and block and f"{block} start" not in given:
                given[f"{block} start"] = given[""]
            explicit = NO_PADS
            for pad in pads:
                more = zero_pads(self.graph, pad)
                explicit = tuple(a + b for a, b in zip(explicit, more, strict=True))  # type: ignore[assignment]
            window = read_window(self.graph, node, explicit, at)
            if not is_side:
                given[""] = window.gives
            found.append((name, node, window))
        return found


def read_body(
    graph: KerasGraph, end: Tensor, role: Callable[[Node], str | None], size_at: Callable[[Tensor], Size]
) -> Body:
    """The body that ends in `end`; `size_at` measures its input.

    Raises `CheckpointError` for a layer that a ResNet-50 does not have.
    """
    walk = Walk(graph, role)
    tensor = end
    for stage, blocks in reversed(STAGES):
        for block in reversed(range(blocks)):
            tensor = _bottleneck(walk, tensor, f"layer{stage}.{block}")
    tensor = walk.pool(tensor, "maxpool")
    tensor = walk.activation(tensor, "relu")
    tensor = walk.norm(tensor, "bn1")
    source = walk.convolution(tensor, "conv1")
    return _settled(walk, source, size_at(source))


def _bottleneck(walk: Walk, tensor: Tensor, name: str) -> Tensor:
    relu = f"{name}.relu"
    tensor = walk.activation(tensor, relu)
    main, side = walk.branches(tensor, f"{name}.bn3")
    main = walk.convolution(walk.norm(main, f"{name}.bn3"), f"{name}.conv3")
    main = walk.convolution(walk.norm(walk.activation(main, relu), f"{name}.bn2"), f"{name}.conv2")
    main = walk.convolution(walk.norm(walk.activation(main, relu), f"{name}.bn1"), f"{name}.conv1")
    if name.endswith(".0"):
        side = walk.convolution(walk.norm(side, f"{name}.downsample.1"), f"{name}.downsample.0")
    return walk.meet(main, side, name)


def _settled(walk: Walk, source: Tensor, size: Size) -> Body:
    windows = {name: (node, window) for name, node, window in walk.measured(size)}
    altered: list[Layer] = []
    starts = [windows[f"layer{stage}.0.conv1"][1].stride for stage in (2, 3, 4)]
    threes = [windows[f"layer{stage}.0.conv2"][1].stride for stage in (2, 3, 4)]
    stride_in: Literal["3x3", "1x1"] = "3x3" if threes.count((2, 2)) > starts.count((2, 2)) else "1x1"
    stem: Literal["symmetric", "same"] = "symmetric"
    pool: Literal["symmetric", "ceil", "valid"] = "symmetric"
    for name, (node, window) in windows.items():
        if name == "maxpool":
            continue
        stride, padding = _expected(name, stride_in)
        kernel = 7 if name == "conv1" else 3 if name.endswith("conv2") else 1
        if window.kernel != (kernel, kernel):
            raise walk.graph.refusal(node, f"its kernel is {window.kernel} where {kernel}×{kernel} was expected")
        if name == "conv1" and window.pads == (2, 3, 2, 3) and window.stride == (2, 2):
            stem = "same"
            continue
        if window.symmetric is None:
            raise walk.graph.refusal(node, f"its padding {window.pads} is not the same on both sides")
        if (window.stride, window.symmetric, window.dilation) != (stride, padding, (1, 1)):
            dilation = window.dilation if window.dilation != (1, 1) else None
            altered.append(
                Layer(name, "convolution", stride=window.stride, padding=window.symmetric, dilation=dilation)
            )
    if "maxpool" not in windows:
        altered.append(Layer("maxpool", "identity"))
    else:
        pool = _read_pool(walk, *windows["maxpool"], altered)
    altered += _activations(walk)
    epsilon, norms = read_epsilons(walk)
    last = windows["layer4.2.conv3"][1].gives
    return Body(source, last, stride_in, stem, pool, epsilon, (*altered, *norms))


def _expected(name: str, stride_in: str) -> tuple[Size, Size]:
    """Stride and padding of torchvision's convolution with this switch."""
    if name == "conv1":
        return (2, 2), (3, 3)
    is_strided = name in {f"layer{stage}.0.{'conv1' if stride_in == '1x1' else 'conv2'}" for stage in (2, 3, 4)}
    is_strided = is_strided or name in {f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)}
    return (2, 2) if is_strided else (1, 1), (1, 1) if name.endswith("conv2") else (0, 0)


def _read_pool(walk: Walk, node: Node, window: Window, altered: list[Layer]) -> Literal["symmetric", "ceil", "valid"]:
    is_max = node.kind == "MaxPooling2D"
    if any(window.explicit) and is_max and not walk.activations["relu"][0].keeps_zero_lowest:
        raise walk.graph.refusal(node, "there are zeros around what it is given, and values below zero in it")
    if not is_max and window.is_same and any(window.pads):
        raise walk.graph.refusal(node, "its mean leaves out what padding SAME adds")
    if is_max and (window.kernel, window.stride) == ((3, 3), (2, 2)):
        known: dict[Pads, Literal["symmetric", "ceil", "valid"]] = {
            (1, 1, 1, 1): "symmetric",
            (0, 1, 0, 1): "ceil",
            NO_PADS: "valid",
        }
        if window.pads in known:
            return known[window.pads]
    if window.symmetric is None:
        raise walk.graph.refusal(node, f"its padding {window.pads} is not the same on both sides")
    kind: Literal["max_pool", "average_pool"] = "max_pool" if is_max else "average_pool"
    altered.append(Layer("maxpool", kind, window.kernel, window.stride, window.symmetric))
    return "symmetric"


def _activations(walk: Walk) -> list[Layer]:
    found = []
    for name, (activated, node) in walk.activations.items():
        if activated.kind in ("softmax", "log_softmax"):
            raise walk.graph.refusal(node, f"{_NOT_THERE}: an activation of single values was expected")
        if activated != RELU:
            kind = "identity" if activated.kind == "linear" else activated.layer_kind
            found.append(Layer(name, kind, value=activated.value))
    return found


def read_epsilons(walk: Walk, usual: float | None = None) -> tuple[float, list[Layer]]:
    """The epsilon of most normalisations, or `usual`; and the normalisations with another."""
    values = [(name, read_epsilon(walk.graph, node)) for name, node in walk.norms]
    common = usual if usual is not None else Counter(value for _, value in values).most_common(1)[0][0]
    return common, [Layer(name, "batch_norm", value=value) for name, value in values if value != common]


def read_epsilon(graph: KerasGraph, node: Node) -> float:
    epsilon = node.options.get("epsilon", 1e-3)
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise graph.refusal(node, f"its epsilon is {str(epsilon)[:20]}")
    return float(epsilon)
