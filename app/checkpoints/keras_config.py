"""Facts in a Keras model's configuration: the body's switches, the classifier, the preprocessing.

No layer is instantiated. A file with an unsupported layer between the image and the scores is refused by the layer's
name, since the weights alone would not give the model's answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import Activation
from .base import Decision, Stored, Told
from .families import find_places
from .keras_body import read_body
from .keras_body_v2 import read_body_v2
from .keras_graph import KerasGraph, Node
from .keras_head import KerasHead, read_head, read_tail, split_tail
from .keras_preprocessing import IMAGE_SIDE, Images, Prepared
from .keras_unfolding import read_graph
from .presets import PRESETS

SOURCE = "the file's config"
Arrays = Mapping[str, NDArray[Any]]
_BINARY_LOSSES = ("BinaryCrossentropy", "binary_crossentropy", "BinaryFocalCrossentropy", "binary_focal_crossentropy")


@dataclass(frozen=True, slots=True)
class KerasConfig:
    """A model's graph and its training configuration."""

    graph: KerasGraph
    training: Mapping[str, Any]
    """The arguments of `compile`; empty if the file does not state them."""

    def with_facts(self, tensors: Arrays) -> Stored:
        """`tensors`, under the names of the graph's layers, and the graph's facts.

        Raises `CheckpointError` for a layer that is not supported at its position.
        """
        for node in self.graph.nodes:
            if node.kind == "Lambda":
                raise self.graph.refusal(node, "code, and no code in a file is ever run")
        tensors = {**_neutral(self.graph, tensors), **tensors}
        role = _roles(tensors)
        if role is None:
            return Stored(tensors)
        is_preactivated = any(role(node) == "norm" for node in self.graph.nodes)
        end, behind = split_tail(read_tail(self.graph), is_preactivated)
        images = Images(self.graph, tensors)
        walk = read_body_v2 if is_preactivated else read_body
        body = walk(self.graph, end, role, images.size_at)
        head = read_head(self.graph, behind, body.size)
        if is_preactivated and head.altered:
            raise self.graph.refusal(behind[0], "ResNet50V2 is served with the mean of all points behind it")
        usual = PRESETS["keras-v2" if is_preactivated else "keras"]
        prepared = images.prepared(body.source, usual)
        told = Told(
            epsilon=Decision(body.epsilon, SOURCE),
            preprocessing=_preprocessing(prepared, usual),
            altered=Decision((*body.altered, *head.altered), SOURCE) if body.altered or head.altered else None,
            head=Decision(head.layers, SOURCE) if head.layers else None,
            activation=self._activation(head),
        )
        if not is_preactivated:
            told = replace(
                told,
                stride_in=Decision(body.stride_in, SOURCE),
                stem=Decision(body.stem, SOURCE),
                pool=Decision(body.pool, SOURCE),
            )
        kept = {name: values for name, values in tensors.items() if name.rpartition("/")[0] not in prepared.used}
        return Stored(_in_torch_order(kept, head), told, tuple(prepared.warnings))

    def _activation(self, head: KerasHead) -> Decision[Activation] | None:
        if head.activation is not None:
            return Decision(head.activation, SOURCE)
        loss = self.training.get("loss")
        name = loss.get("class_name") if isinstance(loss, dict) else loss
        options = loss.get("config") if isinstance(loss, dict) else None
        takes_scores = isinstance(options, dict) and options.get("from_logits") is True
        if head.layers and name in _BINARY_LOSSES and takes_scores:
            return Decision("sigmoid", f"{SOURCE}, its loss {name} of scores")
        return None


def read_config(text: str | bytes, path: Path, training: str | None = None) -> KerasConfig:
    """Read a configuration. `training` has the arguments of `compile`, if the file stores them separately.

    Raises `CheckpointError` in one line if it is no configuration of layers.
    """
    graph = read_graph(text, path)
    compiled: Any = graph.document.get("compile_config")
    if training is not None:
        try:
            compiled = json.loads(training)
        except (ValueError, RecursionError):
            raise CheckpointError(
                f"{path} has a training_config that cannot be read. Save it with Keras again."
            ) from None
    return KerasConfig(graph, compiled if isinstance(compiled, dict) else {})


def _roles(tensors: Arrays) -> Callable[[Node], str | None] | None:
    """Layer → the name of its module in the network; None if the variables have no ResNet-50's names."""
    places = find_places(tensors)
    if not places:
        return None

    def role(node: Node) -> str | None:
        for leaf in ("kernel", "gamma"):
            if (name := places[0].rename(f"{node.label}/{leaf}")) is not None:
                return name.rpartition(".")[0]
        return None

    return role


def _neutral(graph: KerasGraph, tensors: Arrays) -> Arrays:
    """Ones and zeros for gamma and beta of the normalisations, to fill in missing ones."""
    found: dict[str, NDArray[Any]] = {}
    for node in graph.nodes:
        mean = tensors.get(f"{node.label}/moving_mean")
        if node.kind == "BatchNormalization" and mean is not None:
            found |= {f"{node.label}/gamma": np.ones_like(mean), f"{node.label}/beta": np.zeros_like(mean)}
    return found


def _preprocessing(prepared: Prepared, usual: Any) -> Decision[Any] | None:
    if prepared.preprocessing is not None:
        return Decision(prepared.preprocessing, SOURCE)
    if prepared.size == (IMAGE_SIDE, IMAGE_SIDE):
        return None
    return Decision(replace(usual, crop=prepared.size), f"{SOURCE} (size) and the family's way")


def _in_torch_order(tensors: Arrays, head: KerasHead) -> Arrays:
    """Reorder the rows of a classifier's first layer for torch (channels first), if it takes flattened features."""
    if head.flattened is None:
        return tensors
    name = f"{head.layers[0].name}/kernel"
    values = tensors.get(name)
    points = head.flattened[0] * head.flattened[1]
    if values is None or values.ndim != 2 or values.shape[0] % points:
        return tensors
    by_channel = values.reshape(points, -1, values.shape[1]).transpose(1, 0, 2).reshape(values.shape)
    return {**tensors, name: np.ascontiguousarray(by_channel)}
