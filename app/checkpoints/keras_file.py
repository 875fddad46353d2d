"""Keras's files without Keras: `.h5` (legacy), `.weights.h5` and `.keras`.

All variables become `layer/kernel`, `layer/gamma`, …: by their names if a file has them, otherwise by the order in
which Keras creates them. The configuration in a file is read as data (see `keras_config`); nothing that it names is
instantiated or run.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Stored
from .hdf5 import MAX_FILE_BYTES, SIGNATURE, Hdf5, read_hdf5
from .keras_config import KerasConfig, read_config
from .keras_graph import MAX_CONFIG_BYTES, KerasGraph
from .keras_order import Variables, is_counted, names_by_order, number_of

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
# Deflate hardly compresses weights: a file that grows by more than this when unpacked is not Keras's.
_MAX_GROWTH_BYTES = 100 * 1024 * 1024
# Groups with a model's layers: in Keras 3 and tf.keras since 2.12; in tf.keras 2.13.
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    KeyError,
)
_MOST_VARIABLES = 4  # in one layer of a ResNet: gamma, beta, mean, variance
# Keras 2 and 3: kernel:0, moving_mean:0. Keras 1, and the weights that were published then: res2a_branch2a_W_1:0.
_VARIABLE = re.compile(
    r"(?:^|_)(kernel|bias|gamma|beta|moving_mean|moving_variance|W|b|running_mean|running_std|mean|variance)(?:_\d+)?(?::0)?$"
)
_KERAS_1 = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}


def is_keras_h5(head: bytes, tail: bytes) -> bool:
    return head.startswith(SIGNATURE)


def is_keras_zip(names: Iterable[str]) -> bool:
    """Whether the members of a zip are those of a `.keras` file."""
    return {_CONFIG, _WEIGHTS} <= set(names)


def read_keras_h5(path: Path) -> Stored:
    """An HDF5 file: a whole model or weights alone, legacy or Keras 3's.

    Raises `CheckpointError` if it is refused, damaged, or has layers that a ResNet-50 does not have.
    """
    file = read_hdf5(path)
    text, training = (file.groups[""].get(name) for name in ("model_config", "training_config"))
    return _stored(file, read_config(text, path, training) if text else None, path)


def read_keras_zip(path: Path) -> Stored:
    """A `.keras` file: its configuration and its weights. Raises as `read_keras_h5` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names) or any(".." in name.split("/") or name[:1] in "/\\" for name in names):
                raise CheckpointError(f"{path} has members with one name, or outside its folder. Save it with Keras.")
            _check_member(archive, _WEIGHTS, min(MAX_FILE_BYTES, path.stat().st_size + _MAX_GROWTH_BYTES), path)
            _check_member(archive, _CONFIG, MAX_CONFIG_BYTES, path)
            config = archive.read(_CONFIG)
            size_bytes = archive.getinfo(_WEIGHTS).file_size
    except _ZIP_DAMAGE as error:
        raise CheckpointError(f"{path} is a damaged .keras file ({error}). Copy or download it again.") from None
    return _stored(read_hdf5(path, _WEIGHTS, size_bytes), read_config(config, path), path)


def _check_member(archive: zipfile.ZipFile, name: str, limit_bytes: int, path: Path) -> None:
    """Raises `CheckpointError` for a member that is too large or packed in an unusual way.

    The declared size is checked, since at most that many bytes are read.
    """
    member = archive.getinfo(name)
    if member.file_size > limit_bytes or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(
            f"{path}: {name} has {member.file_size:,} bytes or an unusual compression. "
            f"The limit is {limit_bytes:,} bytes, stored or deflated."
        )


def _stored(file: Hdf5, config: KerasConfig | None, path: Path) -> Stored:
    graph = config.graph if config is not None else None
    is_keras3 = any(where in file.groups for where in _CONTAINERS)
    tensors = _keras3_tensors(file, graph, path) if is_keras3 else _legacy_tensors(file, graph, path)
    if config is not None:
        return config.with_facts(tensors)
    for name in tensors:
        layer, _, leaf = name.rpartition("/")
        if leaf == "mean" and f"{layer}/variance" in tensors:
            raise CheckpointError(
                f"{path} has weights alone, and among them those of {layer[:60]!r}, a Normalization: what else "
                f"prepares the images is not in it. Save the whole model: model.save('model.keras')."
            )
    return Stored(tensors)


# --- legacy: a group for each layer, with datasets named after its variables


def _legacy_tensors(file: Hdf5, graph: KerasGraph | None, path: Path) -> dict[str, NDArray[Any]]:
    """`layer/kernel` → values, also for the layers of nested models."""
    root = "model_weights/" if "model_weights" in file.groups else ""
    tensors: dict[str, NDArray[Any]] = {}
    members: dict[str, list[str]] = {}
    for where in file.tensors:
        if where.startswith(root) and "/" in where[len(root) :]:
            members.setdefault(where[len(root) :].split("/")[0], []).append(where)
    for group, datasets in members.items():
        leaves = [_legacy_leaf(where) for where in datasets]
        is_model = len(datasets) > _MOST_VARIABLES or len(set(leaves)) < len(leaves)
        if graph is not None:
            is_model = group in graph.models
        for where, leaf in zip(datasets, leaves, strict=True):
            # The group has the layer's name: TensorFlow renumbers the scopes inside it.
            owner = where.split("/")[-2] if is_model else group
            label = graph.label(group if is_model else None, owner) if graph is not None else None
            name = f"{label or owner}/{leaf}"
            if name in tensors:
                raise CheckpointError(f"{path} holds more than one {name}. Save the network to serve alone.")
            tensors[name] = file.tensors[where]
    return tensors


def _legacy_leaf(where: str) -> str:
    leaf = where.split("/")[-1]
    match = _VARIABLE.search(leaf)
    return _KERAS_1.get(match[1], match[1]) if match else leaf


# --- Keras 3: layers/{class}[_{n}]/vars/{i}, n counting per class in layer order


def _keras3_tensors(file: Hdf5, graph: KerasGraph | None, path: Path) -> dict[str, NDArray[Any]]:
    """`layer/kernel` → values."""
    tensors: dict[str, NDArray[Any]] = {}
    layers = _keras3_layers(file)
    names = _keras3_names(layers, graph, path)
    options = {node.label: node.options for node in graph.nodes} if graph is not None else {}
    for layer in layers:
        name = names[layer.place]
        for leaf, array in zip(_leaves(layer, options.get(name, {})), layer.values, strict=True):
            if f"{name}/{leaf}" in tensors:
                raise CheckpointError(f"{path} holds two layers {name}. Save the network to serve alone.")
            tensors[f"{name}/{leaf}"] = array
    return tensors


def _leaves(layer: Variables, options: Mapping[str, Any]) -> list[str]:
    """A layer's variables in the order in which Keras creates them."""
    count = len(layer.values)
    known: list[str] = []
    if layer.kind == "batch_normalization":
        known = [leaf for leaf, option in (("gamma", "scale"), ("beta", "center")) if options.get(option, True)]
        known += ["moving_mean", "moving_variance"]
    elif layer.kind == "layer_normalization":
        known = [leaf for leaf, option in (("gamma", "scale"), ("beta", "center")) if options.get(option, True)]
    elif layer.kind == "normalization":
        known = ["mean", "variance"]
    elif layer.values[0].ndim in (2, 4):
        known = ["kernel", "bias"][:count]
    elif count == _MOST_VARIABLES and all(array.ndim == 1 for array in layer.values):
        known = ["gamma", "beta", "moving_mean", "moving_variance"]
    return known if len(known) == count else [f"variable_{number}" for number in range(count)]


def _keras3_layers(file: Hdf5) -> list[Variables]:
    variables: dict[str, dict[str, NDArray[Any]]] = {}
    for where, values in file.tensors.items():
        group, _, number = where.rpartition("/")
        variables.setdefault(group, {})[number] = values
    found: list[Variables] = []
    for where, numbered in variables.items():
        parts = where.split("/")
        if len(parts) < 3 or parts[-1] != "vars" or parts[-3] not in _CONTAINERS:
            continue
        place = "/".join("layers" if part in _CONTAINERS else part for part in parts[:-1])
        ordered = [numbered[number] for number in sorted(numbered, key=number_of)]
        found.append(Variables(place, file.groups[where].get("name"), ordered))
    return found


def _keras3_names(layers: Sequence[Variables], graph: KerasGraph | None, path: Path) -> dict[str, str]:
    """Places → names: from the configuration, otherwise from the file, otherwise by the order of the layers."""
    if graph is not None:
        labels = graph.labels
        unknown = next((layer for layer in layers if layer.place not in labels), None)
        if unknown is not None:
            raise CheckpointError(
                f"{path} has weights at {unknown.place[:80]}, where its configuration has no layer. Save it again."
            )
        return {layer.place: labels[layer.place] for layer in layers}
    if all(layer.name is None for layer in layers) and is_counted(layer.place for layer in layers):
        return names_by_order(layers, path)
    bare = {layer.place: layer.name or layer.place.split("/")[-1] for layer in layers}
    counted = Counter(bare.values())
    return {place: name if counted[name] == 1 else place for place, name in bare.items()}
