"""The head of a Keras graph: pooling, the classifier's layers, the last activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..layers import Layer
from ..types import Activation
from .keras_body import read_epsilon
from .keras_graph import KerasGraph, Node, Tensor
from .keras_layers import (
    Activated,
    Size,
    behind_inert,
    named_activation,
    output_size,
    pair,
    read_activation,
    read_window,
    zero_pads,
)

_SUMS = frozenset({"Add", "tf.math.add", "tf.__operators__.add"})
_AVERAGES = frozenset({"GlobalAveragePooling2D", "Mean", "tf.math.reduce_mean"})
_MAXIMA = frozenset({"GlobalMaxPooling2D", "Max", "Amax", "tf.math.reduce_max"})
_NOT_BEHIND = "which is not known behind a ResNet-50"


@dataclass(frozen=True, slots=True)
class Tail:
    """The nodes after the sum that ends the last block."""

    nodes: tuple[Node, ...]
    """In order, without those that have no effect."""
    graph: KerasGraph


@dataclass(frozen=True, slots=True)
class KerasHead:
    """The classifier."""

    layers: tuple[Layer, ...]
    """Named by their labels; empty if there is no dense layer."""
    altered: tuple[Layer, ...]
    """The pooling, if it is not the mean of all points."""
    activation: Activation | None
    """None if no activation follows the scores."""
    flattened: Size | None = None
    """Height and width of features that are flattened and not pooled, in Keras's axis order; else None."""


def read_tail(graph: KerasGraph) -> Tail:
    """The nodes from the last sum of two branches to the output."""
    nodes: list[Node] = []
    tensor = behind_inert(graph.output)
    while len(tensor.node.inputs) == 1:
        nodes.append(tensor.node)
        tensor = behind_inert(tensor.node.inputs[0])
    if tensor.node.kind not in _SUMS or len(tensor.node.inputs) != 2:
        raise graph.refusal(tensor.node, _NOT_BEHIND)
    return Tail(tuple(reversed(nodes)), graph)


def split_tail(tail: Tail, is_preactivated: bool) -> tuple[Tensor, tuple[Node, ...]]:
    """The output of the body, and the nodes of the head."""
    count = 2 if is_preactivated else 1  # post_bn and post_relu; the last block's activation
    if len(tail.nodes) < count:
        raise tail.graph.refusal(tail.graph.output.node, "the body was expected to end in an activation")
    return Tensor(tail.nodes[count - 1]), tail.nodes[count:]


class _Head:
    """Reads the nodes in order."""

    def __init__(self, graph: KerasGraph, size: Size) -> None:
        self._graph = graph
        self._points = size
        self._is_pooled = False
        self._rank = 4
        self.layers: list[Layer] = []
        self.altered: list[Layer] = []
        self.flattened: Size | None = None
        self._last: tuple[Activated, Node] | None = None

    def take(self, node: Node) -> None:
        if not self.layers and self._rank == 4 and self._pool(node):
            return
        if node.kind in ("Flatten", "Reshape", "Squeeze"):
            self._flatten(node)
        elif node.kind in ("Dense", "Conv2D"):
            self._dense(node)
        elif node.kind == "BatchNormalization":
            self._check_axis(node)
            if node.keywords.get("training") is True:
                raise self._graph.refusal(node, "it is called with training=True, and uses each batch's own statistics")
            self._add(Layer(node.label, "batch_norm", value=read_epsilon(self._graph, node)), node)
        elif node.kind == "LayerNormalization" and not node.options.get("rms_scaling"):
            self._check_axis(node)
            self._add(Layer(node.label, "layer_norm", value=read_epsilon(self._graph, node)), node)
        elif (activated := read_activation(self._graph, node)) is not None:
            self._activate(activated, node)
        else:
            raise self._graph.refusal(node, _NOT_BEHIND)

    # --- pooling

    def _pool(self, node: Node) -> bool:
        """Whether the node pools the points of the body."""
        if node.kind in _AVERAGES | _MAXIMA:
            if "Global" not in node.kind:
                self._check_axes(node)
            self._pool_all(node, node.kind in _MAXIMA)
            kept = node.options.get("keepdims", node.keywords.get("keepdims"))
            self._rank = 4 if kept else 2
        elif node.kind in ("AveragePooling2D", "MaxPooling2D"):
            self._pool_windows(node)
        elif node.kind == "ZeroPadding2D" and not self._is_pooled and any(zero_pads(self._graph, node)):
            raise self._graph.refusal(node, _NOT_BEHIND)
        else:
            return False
        return True

    def _pool_all(self, node: Node, is_max: bool) -> None:
        if self._points != (1, 1):
            if self._is_pooled:
                # A mean of means is the mean of all points only for windows of equal size, which is not certain here.
                raise self._graph.refusal(node, "it is the second pooling")
            if is_max:
                self.altered.append(Layer("avgpool", "adaptive_max_pool"))
        self._points, self._is_pooled = (1, 1), True

    def _pool_windows(self, node: Node) -> None:
        window = read_window(self._graph, node, (0, 0, 0, 0), self._points)
        is_max = node.kind == "MaxPooling2D"
        if window.kernel == self._points and not any(window.pads):
            self._pool_all(node, is_max)
            return
        if self._is_pooled or any(window.pads):
            raise self._graph.refusal(node, _NOT_BEHIND)
        kind = "max_pool" if is_max else "average_pool"
        self.altered.append(Layer("avgpool", kind, window.kernel, window.stride))  # type: ignore[arg-type]
        self._points, self._is_pooled = output_size(self._points, *_plain(window.kernel, window.stride)), True

    def _check_axes(self, node: Node) -> None:
        """Raises `CheckpointError` unless the operation goes over height and width."""
        options = {**node.options, **node.keywords}
        axes = options.get("axis")
        if sorted(axes if isinstance(axes, list | tuple) else [axes or 0]) not in ([1, 2], [-3, -2]):
            raise self._graph.refusal(node, "it does not go over height and width")

    def _flatten(self, node: Node) -> None:
        shape = _list(node.options.get("target_shape"))
        if node.kind == "Reshape" and len(shape) != 1:
            # Only to 1×1 points, from a vector or from such points; any other shape would mix features.
            if len(shape) != 3 or shape[:2] != [1, 1] or self._points != (1, 1):
                raise self._graph.refusal(node, _NOT_BEHIND)
            self._rank = 4
            return
        if node.kind == "Squeeze" and (self._points != (1, 1) or node.options.get("axis") not in (None, [1, 2])):
            raise self._graph.refusal(node, _NOT_BEHIND)
        if self._rank == 4 and self._points != (1, 1):
            if not self._is_pooled:
                self.altered.append(Layer("avgpool", "identity"))
            self.flattened = self._points
        self._rank = 2

    # --- layers

    def _dense(self, node: Node) -> None:
        if self._rank != 2 and self._points != (1, 1):
            raise self._graph.refusal(node, f"it stands before the {'last ' if self._is_pooled else ''}pooling")
        if node.kind == "Conv2D" and (self._rank == 2 or pair(node.options.get("kernel_size")) != (1, 1)):
            raise self._graph.refusal(node, _NOT_BEHIND)
        self._add(Layer(node.label, "linear"), node)
        self._activate(named_activation(self._graph, node), node)

    def _add(self, layer: Layer, node: Node) -> None:
        if self._last is not None:
            activated, before = self._last
            if activated.kind in ("softmax", "log_softmax"):
                raise self._graph.refusal(before, f"its {activated.kind} is not the last of the layers")
            self._last = None
        self.layers.append(layer)

    def _activate(self, activated: Activated, node: Node) -> None:
        if activated.kind == "linear":
            return
        is_second_softmax = self._last is not None and self._last[0].kind in ("softmax", "log_softmax")
        if is_second_softmax or (activated.kind == "softmax" and self._rank != 2):
            raise self._graph.refusal(node, "it follows a softmax, or stands before the features are flat")
        self._last = (activated, node)
        if activated.kind not in ("softmax", "log_softmax"):
            name = f"the activation of {node.label}"
            self.layers.append(Layer(name, activated.layer_kind, value=activated.value))

    def _check_axis(self, node: Node) -> None:
        last = self._rank - 1
        if (axis := node.options.get("axis", -1)) not in (-1, last, [-1], [last]):
            raise self._graph.refusal(node, f"it normalises along the axis {str(axis)[:20]}, and not the features")
        if self._rank != 2 and self._points != (1, 1):
            raise self._graph.refusal(node, "it stands before the pooling")

    # --- the end

    @property
    def is_flat(self) -> bool:
        return self._rank == 2

    def ends_in(self) -> Activation | None:
        """The function from scores to probabilities; None if there is none. Raises `CheckpointError` for any other."""
        if self._last is None:
            return None
        activated, node = self._last
        if activated.kind in ("softmax", "log_softmax"):
            return "softmax"
        if not any(layer.kind == "linear" for layer in self.layers):
            return None
        if activated.kind == "sigmoid":
            self.layers.pop()
            return "sigmoid"
        if activated.kind == "hardsigmoid":
            return "none"
        raise self._graph.refusal(
            node,
            f"the model ends in its {activated.kind}, which gives neither probabilities nor the scores of a softmax. "
            f"If it should give scores, make its activation None and save the model again",
        )


def read_head(graph: KerasGraph, nodes: tuple[Node, ...], size: Size) -> KerasHead:
    """The head after a body with `size` output points. Raises `CheckpointError` for an unsupported layer."""
    head = _Head(graph, size)
    for node in nodes:
        head.take(node)
    activation = head.ends_in()
    if head.layers and not head.is_flat:
        raise graph.refusal(graph.output.node, "the model gives more than one row of scores for an image")
    if not any(layer.kind == "linear" for layer in head.layers):
        return KerasHead((), (), None)
    if head.flattened is not None and head.layers[0].kind != "linear":
        raise graph.refusal(nodes[0], "what is flattened behind it goes into no dense layer at once")
    return KerasHead(tuple(head.layers), tuple(head.altered), activation, head.flattened)


def _plain(kernel: Size, stride: Size) -> tuple[Any, ...]:
    return (0, 0, 0, 0), kernel, stride, (1, 1)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
