"""The graph of a Keras model: layer calls and their inputs. `keras_unfolding` reads it from a configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

MODELS = frozenset({"Functional", "Model", "Sequential"})
MAX_CONFIG_BYTES = 2 * 1024 * 1024  # a ResNet50's has some 170,000
EXPORT = (
    "Export the whole model to ONNX and serve that: model.export('model.onnx', format='onnx') in Keras 3, "
    "tf2onnx.convert.from_keras(model, output_path='model.onnx') in Keras 2"
)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One call of a layer or of an operation."""

    kind: str
    """The class of the layer or operation, or the name of a TensorFlow function in Keras 2, such as `tf.nn.relu`."""
    name: str
    label: str
    """The prefix of its variables in `Stored.tensors`: its name, after its models' names if it is not unique."""
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    """With a `Tensor` for each output of another node."""
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Tensor]:
        """Its inputs from other nodes."""
        return [*tensors_in(self.arguments), *tensors_in(tuple(self.keywords.values()))]

    def describe(self) -> str:
        return f"the layer {self.name[:60]!r} ({self.kind[:60]})"


@dataclass(frozen=True, slots=True)
class Tensor:
    """The output `index` of a node."""

    node: Node
    index: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """One layer of the configuration, at any depth of nested models."""

    kind: str
    name: str
    models: tuple[str, ...]
    """The names of the models that contain it, without the outermost."""
    place: str
    """The path of its variables in Keras 3: `layers/conv2d_1`."""


@dataclass(frozen=True, slots=True)
class KerasGraph:
    """A whole model."""

    document: Mapping[str, Any]
    layers: tuple[Listed, ...]
    nodes: tuple[Node, ...]
    """In topological order: each after its inputs."""
    output: Tensor
    path: Path

    @property
    def is_keras_3(self) -> bool:
        return any("batch_shape" in node.options for node in self.nodes if node.kind == "InputLayer")

    def label(self, model: str | None, name: str) -> str | None:
        """The label of the layer `name` in `model`, at any depth, or in no nested model (None); None if not unique."""
        fitting = [
            label
            for layer, label in zip(self.layers, labels_of(self.layers), strict=True)
            if layer.name == name and (layer.models[:1] == (model,) if model else not layer.models)
        ]
        return fitting[0] if len(fitting) == 1 else None

    @property
    def models(self) -> frozenset[str]:
        """The names of the models nested directly in it."""
        return frozenset(layer.name for layer in self.layers if layer.kind in MODELS and not layer.models)

    @property
    def labels(self) -> dict[str, str]:
        """The path of a layer's variables in Keras 3 → the layer's label."""
        return {layer.place: label for layer, label in zip(self.layers, labels_of(self.layers), strict=True)}

    def refusal(self, node: Node, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} has {node.describe()}: {why}. {EXPORT}.")


def labels_of(layers: Sequence[Listed]) -> list[str]:
    counted = Counter(layer.name for layer in layers)
    return [layer.name if counted[layer.name] == 1 else "/".join([*layer.models, layer.name]) for layer in layers]


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for each in value for tensor in tensors_in(each)] if isinstance(value, list | tuple) else []
