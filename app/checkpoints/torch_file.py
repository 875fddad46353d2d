"""torch.save files, zip and legacy: nothing in them runs, and torch's own loader is not asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from ..types import Activation
from .base import Decision, Stored, Told, Weights
from .labels_inside import find_labels
from .module_facts import Read, read_modules
from .normalisation_inside import find_normalisation
from .pickled_document import WRAPPERS, Located, attributes_of, entries_of, locate_weights
from .pickled_weights import MAX_PICKLE_BYTES, Pickled, ReadStorage, load_arrays, unpickle
from .zip_file import Archive, open_zip, require_stored

# The pickled magic number at the start of a file from before torch 1.6 (torch/serialization.py, MAGIC_NUMBER).
_LEGACY_HEAD = bytes.fromhex("80028a0a6cfc9c46f920")
_LEGACY_ELEMENT_BYTES = {"float64": 8, "float32": 4, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
_PICKLED_MODULE = "the file's pickled module"


def is_torch_zip(names: list[str]) -> bool:
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in names)


def is_torch_legacy(head: bytes, tail: bytes) -> bool:
    return head.startswith(_LEGACY_HEAD)


def read_torch_zip(path: Path) -> Stored:
    """The tensors of a state dict, of a training checkpoint that wraps one, or of a whole pickled module."""
    archive = open_zip(path)
    require_stored(archive)
    root = next(name for name in archive.members if name.endswith("data.pkl")).removesuffix("data.pkl")
    pickled = unpickle("zip", archive.read(f"{root}data.pkl", MAX_PICKLE_BYTES), path)
    return _stored(path, pickled, lambda key: archive.read_stored(f"{root}data/{key}"), is_big_endian(archive, root))


def read_torch_legacy(path: Path) -> Stored:
    """As `read_torch_zip`, for a file from before torch 1.6."""
    with path.open("rb") as file:
        pickled = unpickle("legacy", file.read(MAX_PICKLE_BYTES), path)
    return _stored(path, pickled, _legacy_storages(path, pickled), big_endian=False)


def is_big_endian(archive: Archive, root: str) -> bool:
    return f"{root}byteorder" in archive.members and archive.read(f"{root}byteorder", 64).strip() == b"big"


def _stored(path: Path, pickled: Pickled, read_storage: ReadStorage, big_endian: bool) -> Stored:
    located = locate_weights(pickled.document, path)
    if not located.tensors:
        raise CheckpointError(
            f"{path} holds no state dict. Expected a mapping of names to tensors, bare or under any one key "
            f"({', '.join(WRAPPERS[7:])}, …), or a whole module; found {located.found}."
        )
    arrays: Weights = load_arrays(located.tensors, read_storage, path, big_endian)
    notes: list[str] = []
    if located.rivals:
        arrays, notes = _one_of(arrays, located, path)
    arrays = {**find_normalisation(located.levels, arrays, read_storage, path, big_endian), **arrays}
    labels, note = find_labels(located.levels, "the file")
    notes += [note] if note else []
    read = read_modules(located.modules, arrays, _PICKLED_MODULE, path) if located.modules else Read()
    told = read.told.then(Told(labels=labels, activation=_activation(located)))
    return Stored(arrays, told, read.warnings, notes=tuple(notes))


def _activation(located: Located) -> Decision[Activation] | None:
    """Sigmoid, if a transformers config in the file states multi-label classification."""
    for _, entries in located.levels:
        config = attributes_of(entries.get("config")) or entries_of(entries.get("config")) or {}
        if config.get("problem_type") == "multi_label_classification":
            return Decision("sigmoid", "the file's config.problem_type")
    return None


def _one_of(arrays: Weights, located: Located, path: Path) -> tuple[Weights, list[str]]:
    """The first of several networks with the same names. Raises `CheckpointError` unless all are equal."""
    groups = {
        key: {name.removeprefix(f"{key}."): values for name, values in arrays.items() if name.startswith(f"{key}.")}
        for key in located.rivals
    }
    first, *others = groups
    for other in others:
        one, two = groups[first], groups[other]
        if one.keys() != two.keys() or not all(np.array_equal(one[name], two[name]) for name in one):
            raise CheckpointError(
                f"{path} holds several mappings of tensors, under {first[:60]!r} and under {other[:60]!r}, and which "
                f"one to serve is not said. Save that one alone: torch.save(state_dict, 'weights.pth')."
            )
    notes = [f"The tensors under {other[:60]!r} equal those under {first[:60]!r}, which are read." for other in others]
    return groups[first], notes


def _legacy_storages(path: Path, pickled: Pickled) -> ReadStorage:
    """Reads storages, which follow the pickles: each is its number of elements (int64), then its bytes."""
    spans: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        at = pickled.offset
        for key, dtype in pickled.storages:
            file.seek(at)
            count = int.from_bytes(file.read(8), "little")
            spans[key] = at + 8, count * _LEGACY_ELEMENT_BYTES.get(dtype, 2)
            at = sum(spans[key])
            if at > size:
                break

    def read(key: str) -> bytearray:
        start, length = spans.get(key, (size, 1))
        if start + length > size:
            raise CheckpointError(
                f"{path} looks like a PyTorch file but cannot be read (it ends early). Copy or download it again."
            )
        values = bytearray(length)
        with path.open("rb") as file:
            file.seek(start)
            file.readinto(values)
        return values

    return read
