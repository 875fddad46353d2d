"""Facts of a SavedModel beside its variables: Keras 2's configuration, or the operations of its graph.

Both are read as data. The operations of a graph are counted. Operations in addition to those of a ResNet-50 and its
classifier change images or scores, and are refused; a graph that cannot be read causes a warning.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..protobuf import messages
from ..types import Activation
from .base import Decision, Stored, Told, Weights
from .keras_config import read_config

GRAPH, _METADATA = "saved_model.pb", "keras_metadata.pb"
_MAX_BYTES = 8 * 1024 * 1024
_SOURCE = "the SavedModel's graph"
_EXPORT = "Convert it to ONNX and serve that: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx"
_CONVOLUTIONS = 53
_SUMS = 16
# Operations that move values without computing.
_PLUMBING = frozenset(
    {
        *("Const", "Identity", "NoOp", "Placeholder", "ReadVariableOp", "Reshape", "Squeeze", "Cast"),
        *("StatefulPartitionedCall", "PartitionedCall", "DisableCopyOnRead"),
    }
)
_NETWORK = frozenset({"Conv2D", "BiasAdd", "FusedBatchNormV3", "Rsqrt", "Relu", "MaxPool", "Pad", "Mean", "MatMul"})
_STRIDED = "Conv2D with a stride"
_ENDS = frozenset({"Softmax", "Sigmoid"})


def find_home(index: Path) -> Path | None:
    """The folder of the SavedModel with the variables of `index`; None if there is none."""
    home = index.parent.parent
    return home if index.parent.name == "variables" and (home / GRAPH).is_file() else None


def with_graph(tensors: Weights, home: Path) -> Stored:
    """`tensors`, and the facts in the files of `home`.

    Raises `CheckpointError` for an unsupported layer or operation that would change the answer.
    """
    metadata = _read(home / _METADATA)
    if metadata is not None and (model := _root(metadata)) is not None:
        training = model.get("training_config")
        config = {"class_name": model["class_name"], "config": model["config"]}
        return read_config(json.dumps(config), home, json.dumps(training) if training else None).with_facts(tensors)
    graph = _read(home / GRAPH)
    functions = [] if graph is None else [each for each in _functions(graph) if each["Conv2D"] >= _CONVOLUTIONS]
    if len(functions) == 1 and functions[0]["Conv2D"] == _CONVOLUTIONS and functions[0]["Rsqrt"]:
        return Stored(tensors, _told(functions[0], home))
    warning = (
        f"{home.name} has its graph in parts that are not read: what it does to images before the network and to "
        f"scores behind it is taken to be nothing. {_EXPORT}, if it does more."
    )
    return Stored(tensors, warnings=(warning,))


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and path.stat().st_size <= _MAX_BYTES else None


def _root(metadata: bytes) -> dict[str, Any] | None:
    """The model's own entry: SavedMetadata.nodes = 1; SavedObject.node_path = 3, metadata = 5."""
    for node in messages(metadata, 1):
        if next(messages(node, 3), b"") != b"root":
            continue
        try:
            document = json.loads(next(messages(node, 5), b""))
        except (ValueError, RecursionError):
            return None
        is_model = isinstance(document, dict) and isinstance(document.get("config"), dict)
        return document if is_model and "layers" in document["config"] else None
    return None


def _functions(graph: bytes) -> list[Counter[str]]:
    """The number of operations of each kind, by function.

    SavedModel.meta_graphs = 2, MetaGraphDef.graph_def = 2, GraphDef.library = 2, FunctionDefLibrary.function = 1,
    FunctionDef.node_def = 3.
    """
    return [
        Counter(kind for node in messages(function, 3) for kind in _kinds(node))
        for meta in messages(graph, 2)
        for definition in messages(meta, 2)
        for library in messages(definition, 2)
        for function in messages(library, 1)
    ]


def _kinds(node: bytes) -> Iterator[str]:
    """NodeDef.op = 2; a convolution with a stride counts as `_STRIDED` too."""
    kind = next(messages(node, 2), b"").decode("utf-8", "replace")
    yield kind
    # NodeDef.attr = 5, a map; AttrValue.list = 1; ListValue.i = 3, packed
    for attribute in messages(node, 5) if kind == "Conv2D" else ():
        if next(messages(attribute, 1), b"") == b"strides":
            values = [each for value in messages(attribute, 2) for each in messages(value, 1)]
            if any(set(numbers) - {1} for each in values for numbers in messages(each, 3)):
                yield _STRIDED


def _told(counted: Counter[str], home: Path) -> Told:
    norms = counted["Rsqrt"]
    # A normalisation in parts, with f = gamma * rsqrt(variance + epsilon): x * f + (beta - mean * f).
    needed = {"Mul": 3 * norms, "Sub": norms, "AddV2": 2 * norms + _SUMS}
    more = [f"{name} ×{counted[name] - count}" for name, count in needed.items() if counted[name] != count]
    if (biases := counted["BiasAdd"] - counted["Conv2D"] - counted["MatMul"]) > 0:
        more.append(f"BiasAdd ×{biases}")
    strided = 7 if norms >= _CONVOLUTIONS else 4  # ResNet50; ResNet50V2
    if counted[_STRIDED] != strided:
        more.append(f"{counted[_STRIDED]} convolutions with strides and not {strided}")
    known = {_STRIDED} | _PLUMBING | _NETWORK | _ENDS | needed.keys()
    more += [f"{name[:40]} ×{count}" for name, count in counted.items() if name not in known]
    if more:
        raise CheckpointError(
            f"{home} has a graph with operations beside those of a ResNet-50 ({', '.join(more)[:120]}): it prepares "
            f"images, or ends, in a way of its own. {_EXPORT}."
        )
    ends: list[Activation] = ["softmax"] if counted["Softmax"] else ["sigmoid"] if counted["Sigmoid"] else []
    return Told(activation=Decision(ends[0], _SOURCE) if ends else None)
