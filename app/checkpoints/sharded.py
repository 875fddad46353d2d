"""Weights in several files, as transformers and accelerate save them, with an index from tensor to file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Stored
from .json_file import read_json
from .pickled_weights import MAX_TENSORS

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_INDEX_HEAD = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"(?:metadata|weight_map)"\s*:\s*\{')
_MAX_NAME = 255
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.bin)")


def is_index(head: bytes, tail: bytes) -> bool:
    """Whether it is a JSON object that begins as transformers writes it (modeling_utils.py, save_pretrained)."""
    return _INDEX_HEAD.match(head) is not None


def is_shard(name: str) -> bool:
    """Whether `name` is that of one of a checkpoint's several files."""
    return _SHARD.fullmatch(name) is not None


def refuse_shard(path: Path) -> None:
    """Raises `CheckpointError` for a file that is only a part of a checkpoint."""
    match = _SHARD.fullmatch(path.name)
    if match and int(match["count"]) > 1:
        index = path.with_name(f"{match['stem']}{match['suffix']}.index.json")
        raise CheckpointError(
            f"{path} is one of {int(match['count'])} files of a checkpoint. Name its folder, or its index: {index}."
        )


def files_of(index: Path) -> list[Path]:
    """The index and the files that it names, sorted by name."""
    return [index, *(index.parent / name for name in sorted(set(_weight_map(index).values())))]


def read_sharded(index: Path, read: Callable[[Path], Stored]) -> Stored:
    """The combined results of `read` for all files that `index` names.

    Raises `CheckpointError` if a tensor is missing from its file, or is in another.
    """
    weight_map = _weight_map(index)
    tensors: dict[str, NDArray[Any]] = {}
    warnings: list[str] = []
    notes: list[str] = []
    for file in files_of(index)[1:]:
        stored = read(file)
        for name, values in stored.tensors.items():
            if weight_map.get(name) != file.name:
                where = weight_map.get(name, "no file")
                raise CheckpointError(
                    f"{file} has {name[:80]}, and {index.name} says that {where[:80]} has it. They are of two "
                    f"checkpoints: copy or download all files of one."
                )
            tensors[name] = values
        warnings += stored.warnings
        notes += stored.notes
    missing = [name for name in weight_map if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{index} lists {missing[0][:80]}, and {weight_map[missing[0]][:80]} has no such tensor. They are of two "
            f"checkpoints: copy or download all files of one."
        )
    return Stored(tensors, warnings=tuple(warnings), notes=tuple(notes))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor → file. Raises `CheckpointError` if `index` is none, or names files that are elsewhere or missing."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(
            f'{index} is no index of weights. Expected {{"weight_map": {{"tensor": "file", …}}}}, as transformers '
            f"writes it."
        )
    if len(found) > MAX_TENSORS:
        raise CheckpointError(f"{index} lists {len(found):,} tensors, and at most {MAX_TENSORS:,} are read.")
    for file in sorted(set(found.values())):
        if file in ("", ".", "..") or len(file) > _MAX_NAME or any(each in file for each in "/\\\0"):
            raise CheckpointError(f"{index} names a file outside its folder, {file[:80]!r}. Save the model again.")
        if not (index.parent / file).exists():
            raise CheckpointError(
                f"{index} names {file[:80]}, which is not there. Copy or download all files of the checkpoint."
            )
    return dict(found)
