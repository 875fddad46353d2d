"""Facts of a network's graph, read from output to input: whether it is a ResNet-50, its strides and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import InputChange, Layer
from ..types import Activation
from .base import Decision, Told
from .families import Place
from .layer_facts import BLOCKS, Shape, told_by_body
from .module_kinds import ACTIVATIONS, POOLS
from .operations import Node, Unread

_PROBABILITIES: dict[str, Activation] = {"softmax": "softmax"}
_SAME_PADDING = [2, 3, 2, 3]


@dataclass(frozen=True, slots=True)
class Followed:
    """Facts of a graph, and the names of the tensors that it uses."""

    told: Told
    used: frozenset[str]


def follow(output: Any, place: Place, names: Mapping[str, Any], source: str) -> Followed:
    """Follow the network from `output`, its result, to its input. `names` are those of the file's tensors.

    Raises `Unread` for the first operation that a ResNet-50 does not have at that position.
    """
    return _Follower(place, names, source).follow(_single(output))


def _single(output: Any) -> Node:
    """The network's only output tensor, bare or in a tuple or a mapping."""
    if isinstance(output, dict):
        output = list(output.values())
    while isinstance(output, list | tuple):
        if len(output) != 1:
            raise Unread(f"an output of {len(output)} tensors")
        output = output[0]
    if not isinstance(output, Node):
        raise Unread("an output that is no tensor of the network")
    return output


class _Follower:
    def __init__(self, place: Place, names: Mapping[str, Any], source: str) -> None:
        self._place = place
        self._source = source
        self._body: dict[str, Layer] = {}
        self._used: set[str] = set()
        self._has_same_stem = False
        renamed = (place.rename(name) for name in names)
        self._shape = Shape.of(name for name in renamed if name is not None)

    def follow(self, output: Node) -> Followed:
        node, activation = self._activation(_skipped(output))
        node, head = self._head(node)
        node = self._pool(node)
        for stage, count in reversed(list(enumerate(BLOCKS, start=1))):
            for number in reversed(range(count)):
                node = self._block(node, f"layer{stage}.{number}")
        change = self._change(self._stem(node))
        told = told_by_body(self._body, self._shape, self._source, self._has_same_stem)
        told = replace(
            told,
            head=Decision(tuple(head), self._source),
            activation=Decision(activation, self._source) if activation else None,
            input=Decision(change, self._source) if change else None,
        )
        return Followed(told, frozenset(self._used))

    def _activation(self, node: Node) -> tuple[Node, Activation | None]:
        """The node before the final softmax or sigmoid, if there is one; and which."""
        if node.op == "softmax":
            return _skipped(node.inputs[0]), "softmax"
        if node.layer is not None and node.layer.kind == "sigmoid":
            return _skipped(node.inputs[0]), "sigmoid"
        return node, None

    def _head(self, node: Node) -> tuple[Node, list[Layer]]:
        head: list[Layer] = []
        while True:
            node = _skipped(node)
            is_dense = any(layer.kind == "linear" for layer in head)
            if node.op == "shape" and is_dense:
                node = node.inputs[0]
                continue
            layer = node.layer
            if layer is None or layer.kind in POOLS - {"identity"} or layer.kind == "convolution":
                break
            if node.weights:
                name = node.weights[0].rpartition(".")[0]
                if self._torchs(node) is not None:
                    break
                head.append(replace(layer, name=name))
                self._used.update(node.weights)
                self._used.update(f"{name}.{leaf}" for leaf in ("running_mean", "running_var"))
            elif not head or (is_dense and layer.kind in ACTIVATIONS and not _is_sum(_skipped(node.inputs[0]))):
                head.append(replace(layer, name=f"{layer.kind} {len(head)}"))
            else:
                break
            node = node.inputs[0]
        if not any(layer.kind == "linear" for layer in head):
            raise Unread(f"{_named(node)} where the classifier was expected")
        return node, head[::-1]

    def _pool(self, node: Node) -> Node:
        while node.op == "shape":
            node = _skipped(node.inputs[0])
        layer = node.layer
        if layer is not None and layer.kind in POOLS:
            self._body["avgpool"] = replace(layer, name="avgpool")
            return _skipped(node.inputs[0])
        self._body["avgpool"] = Layer("avgpool", "identity")
        return node

    def _block(self, node: Node, block: str) -> Node:
        node = self._act(node, f"{block}.act3")
        if not _is_sum(node):
            raise Unread(f"{_named(node)} where the sum of {block} was expected")
        main, side = (_skipped(each) for each in node.inputs)
        if self._torchs(main) != f"{block}.bn3":
            main, side = side, main
        for number in (3, 2, 1):
            main = self._layer(main, f"{block}.bn{number}")
            main = self._layer(main, f"{block}.conv{number}")
            if number > 1:
                main = self._act(main, f"{block}.act{number - 1}")
        if block.endswith(".0"):
            numbers = (2, 1) if self._shape.is_pooled else (1, 0)
            for number in numbers:
                side = self._layer(side, f"{block}.downsample.{number}")
            if self._shape.is_pooled:
                is_pool = side.layer is not None and side.layer.kind in POOLS and side is not main
                layer = side.layer if is_pool and side.layer else Layer("", "identity")
                self._body[f"{block}.downsample.0"] = replace(layer, name=f"{block}.downsample.0")
                side = _skipped(side.inputs[0]) if is_pool else side
        if main is not side:
            raise Unread(f"{_named(side)} where the input of {block} was expected")
        return main

    def _stem(self, node: Node) -> Node:
        layer = node.layer
        if layer is not None and layer.kind in POOLS:
            self._body["maxpool"] = replace(layer, name="maxpool")
            node = _skipped(node.inputs[0])
        else:
            self._body["maxpool"] = Layer("maxpool", "identity")
        node = self._act(node, "relu")
        node = self._layer(node, "bn1")
        if self._shape.is_deep:
            for name in ("conv1.6", "conv1.5", "conv1.4", "conv1.3", "conv1.2", "conv1.1", "conv1.0"):
                is_activation = name in ("conv1.5", "conv1.2")
                node = self._act(node, name) if is_activation else self._layer(node, name)
            return node
        node = self._layer(node, "conv1")
        if node.op == "pad" and node.data == (_SAME_PADDING, 0) and self._body["conv1"].padding == (0, 0):
            self._has_same_stem = True
            node = _skipped(node.inputs[0])
        return node

    def _act(self, node: Node, name: str) -> Node:
        """The node before the activation, which is recorded as `name`."""
        layer = node.layer
        is_activation = layer is not None and layer.kind in ACTIVATIONS and not node.weights
        kind = layer if is_activation and layer is not None else Layer("", "identity")
        self._body[name] = replace(kind, name=name)
        return _skipped(node.inputs[0]) if is_activation else node

    def _layer(self, node: Node, name: str) -> Node:
        """The node before the layer `name`, which `node` must be."""
        if node.layer is None or self._torchs(node) != name:
            raise Unread(f"{_named(node)} where {name} was expected")
        self._body[name] = replace(node.layer, name=name)
        self._used.update(node.weights)
        module = node.weights[0].rpartition(".")[0]
        self._used.update(f"{module}.{leaf}" for leaf in ("running_mean", "running_var"))
        return _skipped(node.inputs[0])

    def _torchs(self, node: Node) -> str | None:
        """torchvision's name of a layer of the body."""
        if not node.weights:
            return None
        renamed = self._place.rename(node.weights[0])
        return renamed.rpartition(".")[0] if renamed else None

    def _change(self, node: Node) -> InputChange | None:
        """The change of the input before the network; None if there is none."""
        scale, shift, is_reversed = np.ones(3), np.zeros(3), False
        while node.op != "input":
            if node.op == "affine":
                factor, summand = (each[::-1] if is_reversed else each for each in node.data)
                shift = shift + scale * summand
                scale = scale * factor
            elif node.op == "reversed":
                is_reversed = not is_reversed
            else:
                raise Unread(f"{_named(node)} before the network")
            node = _skipped(node.inputs[0])
        if np.allclose(scale, 1, rtol=0, atol=0) and not shift.any() and not is_reversed:
            return None
        if not (np.isfinite(scale).all() and np.isfinite(shift).all() and (scale > 0).all()):
            raise Unread("a change of the input that turns it over")
        return InputChange(_three(scale), _three(shift), is_reversed)


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _skipped(node: Node) -> Node:
    """The first node before `node`, itself included, that is no copy."""
    while node.op == "same":
        node = node.inputs[0]
    return node


def _is_sum(node: Node) -> bool:
    return node.op == "add"


def _named(node: Node) -> str:
    """A node, for an error text."""
    return node.label or node.op
