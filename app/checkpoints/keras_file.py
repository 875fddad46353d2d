"""Keras's files without Keras: `.h5` (legacy), `.weights.h5` and `.keras`.

All become `layer/kernel`, `layer/gamma`, …: by the variables' names where a file has them, else by the order in which
Keras creates them. The configuration in a file is read as data (see `keras_config`); nothing that it names is ever
made or run.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Stored
from .hdf5 import MAX_FILE_BYTES, SIGNATURE, Hdf5, read_hdf5
from .keras_config import KerasConfig, read_config

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MAX_CONFIG_BYTES = 16 * 1024 * 1024
# Where a Keras model keeps its layers: Keras 3 and tf.keras 2.12 and up; tf.keras 2.13.
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
_MOST_VARIABLES = 4  # of one layer of a ResNet: gamma, beta, mean, variance
# Keras 2 and 3: kernel:0, moving_mean:0. Keras 1, and the weights that were published then: res2a_branch2a_W_1:0.
_VARIABLE = re.compile(
    r"(?:^|_)(kernel|bias|gamma|beta|moving_mean|moving_variance|W|b|running_mean|running_std)(?:_\d+)?(?::0)?$"
)
_KERAS_1 = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
_BLOCKS = ((2, 3), (3, 4), (4, 6), (5, 3))
_OLD_PROJECTION_INPUTS = 128  # of the third convolution of conv3_block1 where the shortcut is listed last


def is_keras_h5(head: bytes, tail: bytes) -> bool:
    return head.startswith(SIGNATURE)


def is_keras_zip(names: Iterable[str]) -> bool:
    """Whether the members of a zip are those of a `.keras` file."""
    return {_CONFIG, _WEIGHTS} <= set(names)


def read_keras_h5(path: Path) -> Stored:
    """An HDF5 file: a whole model or weights alone, legacy or Keras 3's.

    Raises `CheckpointError` for what is refused, damaged, or has layers that tell no ResNet-50.
    """
    file = read_hdf5(path)
    text = file.groups[""].get("model_config")
    return _stored(file, read_config(text, path) if text else None, path)


def read_keras_zip(path: Path) -> Stored:
    """A `.keras` file: its configuration and its weights. Raises as `read_keras_h5` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names) or any(".." in name.split("/") or name[:1] in "/\\" for name in names):
                raise CheckpointError(f"{path} has members with one name, or outside its folder. Save it with Keras.")
            _check_member(archive, _WEIGHTS, MAX_FILE_BYTES, path)
            _check_member(archive, _CONFIG, _MAX_CONFIG_BYTES, path)
            config = archive.read(_CONFIG)
    except _ZIP_DAMAGE as error:
        raise CheckpointError(f"{path} is a damaged .keras file ({error}). Copy or download it again.") from None
    return _stored(read_hdf5(path, _WEIGHTS), read_config(config, path), path)


def _check_member(archive: zipfile.ZipFile, name: str, limit_bytes: int, path: Path) -> None:
    """Of a member no more is read than it declares, so that what it declares is what to look at."""
    member = archive.getinfo(name)
    if member.file_size > limit_bytes or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(
            f"{path}: {name} has {member.file_size:,} bytes or an unusual compression. "
            f"The limit is {limit_bytes:,} bytes, stored or deflated."
        )


def _stored(file: Hdf5, config: KerasConfig | None, path: Path) -> Stored:
    is_keras3 = any(where in file.groups for where in _CONTAINERS)
    tensors = _keras3_tensors(file, config, path) if is_keras3 else _legacy_tensors(file, path)
    heads = [name.removesuffix("/kernel") for name, values in tensors.items() if _is_head(name, values)]
    if len(heads) == 1:
        # A network has one classifier, whatever whoever fine-tuned it called it.
        tensors = {re.sub(f"^{re.escape(heads[0])}/", "predictions/", name): array for name, array in tensors.items()}
    if config is None:
        return Stored(tensors)
    return Stored(tensors, config.told([name.split("/")[0] for name in tensors]), config.warnings)


def _is_head(name: str, values: NDArray[Any]) -> bool:
    return name.endswith("/kernel") and values.ndim == 2


# --- legacy: a group for each layer, with datasets named after its variables


def _legacy_tensors(file: Hdf5, path: Path) -> dict[str, NDArray[Any]]:
    """`layer/kernel` → values. Of a model in the model, its own layers."""
    root = "model_weights/" if "model_weights" in file.groups else ""
    tensors: dict[str, NDArray[Any]] = {}
    members: dict[str, list[str]] = {}
    for where in file.tensors:
        if where.startswith(root) and "/" in where[len(root) :]:
            members.setdefault(where[len(root) :].split("/")[0], []).append(where)
    for layer, datasets in members.items():
        for where in datasets:
            # A layer's own name is the group's: TensorFlow numbers the scopes inside anew.
            owner = where.split("/")[-2] if len(datasets) > _MOST_VARIABLES else layer
            match = _VARIABLE.search(where.split("/")[-1])
            name = f"{owner}/{_KERAS_1.get(match[1], match[1]) if match else where.split('/')[-1]}"
            if name in tensors:
                raise CheckpointError(f"{path} holds more than one {name}. Save the network to serve alone.")
            tensors[name] = file.tensors[where]
    return tensors


# --- Keras 3: layers/{class}[_{n}]/vars/{i}, n counting per class in layer order


def _keras3_tensors(file: Hdf5, config: KerasConfig | None, path: Path) -> dict[str, NDArray[Any]]:
    """`layer/kernel` → values."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer, values in _keras3_layers(file, config, path):
        for leaf, array in zip(_leaves(values), values, strict=True):
            if f"{layer}/{leaf}" in tensors:
                raise CheckpointError(f"{path} holds two layers {layer}. Save the network to serve alone.")
            tensors[f"{layer}/{leaf}"] = array
    return tensors


def _leaves(values: Sequence[NDArray[Any]]) -> list[str]:
    """A layer's variables in the order in which Keras creates them."""
    if len(values) == _MOST_VARIABLES and all(array.ndim == 1 for array in values):
        return ["gamma", "beta", "moving_mean", "moving_variance"]
    if 1 <= len(values) <= 2 and values[0].ndim in (2, 4):
        return ["kernel", "bias"][: len(values)]
    return [f"variable_{number}" for number in range(len(values))]


def _keras3_layers(file: Hdf5, config: KerasConfig | None, path: Path) -> list[tuple[str, list[NDArray[Any]]]]:
    """Each layer's name and variables: named by the file, else by its configuration, else by their order."""
    variables: dict[str, dict[str, NDArray[Any]]] = {}
    for where, values in file.tensors.items():
        group, _, number = where.rpartition("/")
        variables.setdefault(group, {})[number] = values
    found: list[tuple[str, str | None, list[NDArray[Any]]]] = []
    for where, numbered in variables.items():
        parts = where.split("/")
        if len(parts) < 3 or parts[-1] != "vars" or parts[-3] not in _CONTAINERS:
            continue
        name = file.groups[where].get("name")
        place = "/".join("layers" if part in _CONTAINERS else part for part in parts[:-1])
        if name is None and config is not None:
            name = config.names.get(place)
        found.append((place, name, [numbered[number] for number in sorted(numbered, key=_number)]))
    if all(name is None for _, name, _ in found) and _is_counted(place for place, _, _ in found):
        return _by_order([(place, values) for place, _, values in found], path)
    return [(name or place.split("/")[-1], values) for place, name, values in found]


def _is_counted(places: Iterable[str]) -> bool:
    """Whether layers go by their classes' names: then their order is all that tells them apart."""
    bare = {"conv2d", "batch_normalization", "dense"}
    return all(place.split("/")[-1].rstrip("0123456789").rstrip("_") in bare for place in places)


def _by_order(layers: Sequence[tuple[str, list[NDArray[Any]]]], path: Path) -> list[tuple[str, list[NDArray[Any]]]]:
    """The names that belong to layers without any, by the order in which Keras lists those of its ResNets."""

    def of(kind: str) -> list[list[NDArray[Any]]]:
        chosen = [(place, values) for place, values in layers if place.split("/")[-1].startswith(kind)]
        return [values for _, values in sorted(chosen, key=lambda each: _number(each[0]))]

    convolutions, norms, heads = of("conv2d"), of("batch_normalization"), of("dense")
    counts = (len(convolutions), len(norms), len(heads))
    if counts == (53, 53, 1):
        # conv1; of block 2: 1, 2, 0, 3, then two blocks of three; then 1, 2 and the one to look at
        third = convolutions[1 + 4 + 3 + 3 + 2][0]
        is_old = third.ndim == 4 and third.shape[2] == _OLD_PROJECTION_INPUTS
        first = "1230" if is_old else "1203"
        names = ["conv1_conv", *_block_names(first, "123", "conv")]
        norm_names = ["conv1_bn", *_block_names(first, "123", "bn")]
        if is_old:
            names, norm_names = [_old_name(name) for name in names], [_old_name(name) for name in norm_names]
    elif counts == (53, 49, 1):
        names = ["conv1_conv", *_block_names("1203", "123", "conv")]
        norm_names = [*_block_names(("preact", "1", "2"), ("preact", "1", "2"), "bn"), "post_bn"]
    else:
        raise CheckpointError(
            f"{path} names no layers and has {counts[0]} convolutions, {counts[1]} normalisations and {counts[2]} "
            f"dense layers. Expected 53, 53 and 1 (ResNet50) or 53, 49 and 1 (ResNet50V2). Save the model as .keras."
        )
    return [
        *zip(names, convolutions, strict=True),
        *zip(norm_names, norms, strict=True),
        ("predictions", heads[0]),
    ]


def _number(place: str) -> int:
    digits = place.rsplit("_", 1)[-1]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _block_names(first: Sequence[str], other: Sequence[str], kind: str) -> Iterator[str]:
    for stage, blocks in _BLOCKS:
        for block in range(1, blocks + 1):
            for part in first if block == 1 else other:
                yield f"conv{stage}_block{block}_{part}_{kind}"


def _old_name(name: str) -> str:
    """`conv2_block1_0_conv` → `res2a_branch1`, `conv2_block1_3_bn` → `bn2a_branch2c`."""
    if name.startswith("conv1_"):
        return "conv1" if name.endswith("conv") else "bn_conv1"
    stage, block, part, kind = name.removeprefix("conv").replace("block", "").split("_")
    branch = "1" if part == "0" else f"2{'abc'[int(part) - 1]}"
    return f"{'res' if kind == 'conv' else 'bn'}{stage}{'abcdef'[int(block) - 1]}_branch{branch}"
