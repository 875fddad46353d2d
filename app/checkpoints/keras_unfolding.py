"""Keras configurations (JSON) → a graph, with nested models unfolded. No layer is instantiated."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .keras_calls import Pointer, pointers_in, read_call, read_references
from .keras_graph import EXPORT, MAX_CONFIG_BYTES, MODELS, KerasGraph, Listed, Node, Tensor, labels_of, tensors_in

# A ResNet50 has some 180; a model around one adds few.
_MAX_LAYERS = 2_000
_MAX_DEPTH = 16


def read_graph(text: str | bytes, path: Path) -> KerasGraph:
    """The graph of a configuration. Raises `CheckpointError` in one line if it is no model made of layers."""
    if len(text) > MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"{path} has a model configuration of over {MAX_CONFIG_BYTES:,} bytes, which no ResNet-50's is."
        )
    try:
        document = _without_tuples(json.loads(text))
        _check_is_model(document, path)
        layers = tuple(islice(_listed(document, (), ""), _MAX_LAYERS + 1))
        if len(layers) > _MAX_LAYERS:
            raise CheckpointError(f"{path} has a model of over {_MAX_LAYERS:,} layers, which no ResNet-50 has.")
        labels = {(layer.models, layer.name): label for layer, label in zip(layers, labels_of(layers), strict=True)}
        builder = _Builder(labels, path)
        outputs = builder.model(document, None, ())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a model configuration that cannot be read ({type(error).__name__}). Save it with Keras again."
        ) from None
    if len(outputs) != 1:
        raise CheckpointError(
            f"{path} is a model with {len(outputs)} outputs: which of them classifies is not said. "
            f"Save a model with that one alone: keras.Model(model.input, model.outputs[0])."
        )
    return KerasGraph(document, layers, tuple(builder.nodes), outputs[0], path)


def _without_tuples(value: Any) -> Any:
    """A document with lists in place of the tuples in a SavedModel's metadata."""
    if isinstance(value, list):
        return [_without_tuples(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__" and isinstance(value.get("items"), list):
        return _without_tuples(value["items"])
    return {key: _without_tuples(each) for key, each in value.items()}


def _check_is_model(document: Any, path: Path) -> None:
    kind, config = document["class_name"], document["config"]
    if isinstance(config, list) or "layers" in config:
        return
    raise CheckpointError(
        f"{path} is a model of a class of its own, {str(kind)[:60]}, whose code is not in the file and is never run. "
        f"{EXPORT}."
    )


def _entries(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    config = model["config"]
    # A Sequential of Keras 2.0 and 1 is a bare list.
    entries: list[Mapping[str, Any]] = config if isinstance(config, list) else config["layers"]
    return entries


def _name(entry: Mapping[str, Any]) -> str:
    return (
        str(entry["config"].get("name", entry.get("name", "")))
        if isinstance(entry["config"], dict)
        else str(entry.get("name", ""))
    )


def _is_model(entry: Mapping[str, Any]) -> bool:
    return str(entry["class_name"]) in MODELS


def _listed(model: Mapping[str, Any], models: tuple[str, ...], prefix: str) -> Iterator[Listed]:
    if len(models) > _MAX_DEPTH:
        raise ValueError("models in models")
    counted: Counter[str] = Counter()
    for entry in _entries(model):
        kind, name = str(entry["class_name"]), _name(entry)
        snake = _snake(kind)
        place = f"{prefix}layers/{snake}{f'_{counted[snake]}' if counted[snake] else ''}"
        counted[snake] += 1
        yield Listed(kind, name, models, place)
        if _is_model(entry):
            yield from _listed(entry, (*models, name), f"{place}/")


def _snake(kind: str) -> str:
    """Class → name as in keras/utils/naming.py: Conv2D → conv2d, BatchNormalization → batch_normalization."""
    kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind[:200]))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()


@dataclass(slots=True)
class _Builder:
    """Unfolds models into nodes."""

    labels: Mapping[tuple[tuple[str, ...], str], str]
    path: Path
    nodes: list[Node] = field(default_factory=list)
    calls: int = 0
    """Calls of models. They are limited too: models without nodes could call each other exponentially often."""

    def model(self, model: Mapping[str, Any], given: Sequence[Tensor] | None, models: tuple[str, ...]) -> list[Tensor]:
        """The model's outputs for the inputs `given`; None for the outermost model, which has its own inputs."""
        self.calls += 1
        if len(self.nodes) + self.calls > _MAX_LAYERS:
            raise CheckpointError(f"{self.path} calls over {_MAX_LAYERS:,} layers, which no ResNet-50 does.")
        config = model["config"]
        if model["class_name"] == "Sequential" or isinstance(config, list):
            return self._sequential(model, given, models)
        return _Functional(self, config, given, models).outputs()

    def _sequential(
        self, model: Mapping[str, Any], given: Sequence[Tensor] | None, models: tuple[str, ...]
    ) -> list[Tensor]:
        entries = _entries(model)
        tensors = list(given) if given is not None else None
        for entry in entries:
            if tensors is None:
                is_input = entry["class_name"] == "InputLayer"
                shape = _shape(entry["config"]) or _shape(model["config"]) if not is_input else None
                options = entry["config"] if is_input else {"batch_input_shape": shape}
                tensors = [Tensor(self.add("InputLayer", "input", models, options, (), {}))]
            if entry["class_name"] != "InputLayer":
                tensors = self.call(entry, (tensors[0],), {}, models)
        if not tensors:
            raise ValueError("a Sequential without layers")
        return tensors

    def call(
        self, entry: Mapping[str, Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any], models: tuple[str, ...]
    ) -> list[Tensor]:
        name = _name(entry)
        if _is_model(entry):
            if keywords.get("training") is True:
                raise CheckpointError(
                    f"{self.path} calls its model {name[:60]!r} with training=True: its normalisations then use each "
                    f"batch's own statistics, so that an image's answer depends on the others. Call it with "
                    f"training=False and save it again."
                )
            return self.model(entry, tensors_in(arguments), (*models, name))
        return [Tensor(self.add(str(entry["class_name"]), name, models, entry["config"], arguments, keywords))]

    def add(
        self,
        kind: str,
        name: str,
        models: tuple[str, ...],
        options: Mapping[str, Any],
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
    ) -> Node:
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            kind = f"tf.{str(options.get('function', ''))[:60]}"
        node = Node(kind, name, self.labels.get((models, name), name), options, arguments, keywords)
        self.nodes.append(node)
        return node


def _shape(options: Any) -> Any:
    if not isinstance(options, dict):
        return None
    return next(
        (options[key] for key in ("batch_shape", "batch_input_shape", "build_input_shape") if options.get(key)), None
    )


class _Functional:
    """One call of a Functional model."""

    def __init__(
        self,
        builder: _Builder,
        config: Mapping[str, Any],
        given: Sequence[Tensor] | None,
        models: tuple[str, ...],
    ) -> None:
        self._builder, self._models = builder, models
        self._entries = {_name(entry): entry for entry in config["layers"]}
        self._outputs = read_references(config["output_layers"])
        self._made: dict[tuple[str, int], list[Tensor]] = {}
        if given is not None:
            inputs = read_references(config["input_layers"])
            for (name, _, _), tensor in zip(inputs, given, strict=True):
                self._made[name, 0] = [tensor]

    def outputs(self) -> list[Tensor]:
        for name, number, _ in self._outputs:
            self._make(name, number)
        return [self._get(*reference) for reference in self._outputs]

    def _get(self, name: str, number: int, index: int) -> Tensor:
        tensors = self._made[self._key(name, number)]
        # A layer with several outputs has one node for all of them; a model has a tensor for each.
        return tensors[index] if index < len(tensors) else Tensor(tensors[0].node, index)

    def _key(self, name: str, number: int) -> tuple[str, int]:
        """The key of a call. Keras 2 counts a model's construction as its first call, without writing it."""
        entry = self._entries[name]
        calls = len(entry.get("inbound_nodes") or []) or 1
        if calls == 1:
            return name, 0
        return name, number - 1 if _is_model(entry) and number >= calls else number

    def _make(self, name: str, number: int) -> None:
        """Evaluate a call after all calls that it depends on, without recursion: a graph can be very deep."""
        stack = [self._key(name, number)]
        started: set[tuple[str, int]] = set()
        while stack:
            key = stack[-1]
            if key in self._made:
                stack.pop()
                continue
            entry = self._entries[key[0]]
            arguments, keywords = read_call(entry, key[1], self._entries)
            wanted = [self._key(each.name, each.number) for each in pointers_in((arguments, keywords))]
            missing = [each for each in wanted if each not in self._made]
            if not missing:
                self._made[key] = self._builder.call(
                    entry, self._filled(arguments), self._filled(keywords), self._models
                )
            elif key in started:
                raise ValueError("a circle")
            else:
                started.add(key)
                stack += missing

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Pointer):
            return self._get(value.name, value.number, value.index)
        if isinstance(value, dict):
            return {key: self._filled(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._filled(each) for each in value)
        return value
