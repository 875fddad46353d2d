"""Class names in a pickle: beside the weights, in a training script's arguments, or as a module's attribute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Decision
from .pickled_document import Entries, attributes_of, entries_of, is_tensor, module_of

MAX_NAMES = 100_000
MAX_BYTES = 1 << 20
# In order of preference: mappings between index and name first.
_KEYS = (
    *("class_to_idx", "idx_to_class", "id2label", "label2id", "label_to_idx", "idx_to_label", "idx2label", "idx2class"),
    *("class2idx", "index_to_class", "class_to_index", "index_to_name", "classes", "CLASSES", "class_names"),
    *("classnames", "names", "label_names", "class_labels", "labels", "categories", "label_map", "labels_map"),
)
# Keys of nested mappings with labels: mmpretrain's, Lightning's, a training script's arguments.
_PLACES = (
    *("meta", "dataset_meta", "hyper_parameters", "hparams", "args", "config", "cfg", "opt", "params", "info"),
    *("metadata", "model_config", "dataset", "extra", "kwargs", "model_kwargs", "train_args", "data"),
)
_MAX_DEPTH = 3


def find_labels(levels: tuple[tuple[str, Entries], ...], source: str) -> tuple[Decision[tuple[str, ...]] | None, str]:
    """The labels, and a sentence about those that were found and are not used; "" if there are none."""
    found: list[tuple[str, Any]] = []
    for name, entries in levels:
        found += _candidates(entries, "" if name.startswith("the module") else _behind(name))
    found.sort(key=lambda each: _KEYS.index(each[0].rpartition(".")[2]))
    usable: dict[str, tuple[str, ...]] = {}
    unusable: list[str] = []
    for where, value in found:
        names = _names(value)
        if names is not None:
            usable[where] = names
        elif _is_collection(value):
            unusable.append(where)
    note = f"{', '.join(unusable[:3])}: found in {source}, and no name for each class: not used." if unusable else ""
    if not usable:
        return None, note
    chosen = next(iter(usable))
    others = [where for where, names in usable.items() if names != usable[chosen]]
    if others:
        note += f"{' ' if note else ''}{', '.join(others[:3])}: other names than {chosen} has, which are used."
    return Decision(usable[chosen], f"{source}'s {chosen}"), note


def _behind(name: str) -> str:
    return f"{name}." if name else ""


def _candidates(entries: Entries, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key in _KEYS:
        if entries.get(key) is not None and not is_tensor(entries[key]) and module_of(entries[key]) is None:
            yield f"{prefix}{key}", entries[key]
    if depth >= _MAX_DEPTH:
        return
    for key in _PLACES:
        inner = entries_of(entries.get(key)) or attributes_of(entries.get(key))
        if inner is not None and module_of(entries.get(key)) is None:
            yield from _candidates(inner, f"{prefix}{key}.", depth + 1)


def _is_collection(value: Any) -> bool:
    """Whether the value is a collection. A number under such a key is a count, and a text is a file name."""
    return isinstance(value, dict) and not ("c" in value or "b" in value)


def _names(value: Any) -> tuple[str, ...] | None:
    """One name for each index from 0 up, from a list or from a mapping in either direction."""
    names = _listed(value) or _mapped(entries_of(value)) or _array(value)
    if not names or len(names) > MAX_NAMES or sum(len(name.encode()) for name in names) > MAX_BYTES:
        return None
    return tuple(names)


def _listed(value: Any) -> list[str] | None:
    items = value.get("l") if isinstance(value, dict) else None
    return items if items and all(isinstance(item, str) for item in items) else None


def _mapped(entries: Entries | None) -> list[str] | None:
    if not entries:
        return None
    by_index: dict[int, str] = {}
    for key, value in entries.items():
        # {"cat": 0}, {0: "cat"} or {"0": "cat"}
        index, name = (value, key) if isinstance(value, int) else (key, value)
        if isinstance(index, str) and index.isascii() and index.isdigit() and len(index) < 9:
            index = int(index)
        if isinstance(name, dict) and (parts := _listed(name)):
            name = parts[-1]  # torchvision's and Keras' class index: ["n01440764", "tench"]
        if isinstance(index, bool) or not isinstance(index, int) or not isinstance(name, str) or index in by_index:
            return None
        by_index[index] = name
    return [by_index[index] for index in range(len(by_index))] if by_index.keys() == set(range(len(by_index))) else None


def _array(value: Any) -> list[str] | None:
    """The texts of a numpy array, whose pickled state is (version, shape, dtype, is_fortran, values)."""
    state = value.get("s") if isinstance(value, dict) and "_reconstruct" in str(value.get("o")) else None
    parts = state.get("l") if isinstance(state, dict) else None
    if not parts or len(parts) != 5 or not isinstance(parts[4], dict):
        return None
    if "l" in parts[4]:
        return _listed(parts[4])
    kinds = parts[2].get("a") if isinstance(parts[2], dict) else None
    kind = kinds[0] if kinds else ""
    if not isinstance(kind, str) or not kind.startswith("U") or not kind[1:].isdigit() or "b" not in parts[4]:
        return None
    step, content = 4 * int(kind[1:]), parts[4]["b"].encode("latin-1", "replace")
    if not step or len(content) % step or len(content) // step > MAX_NAMES:
        return None
    pieces = (content[at : at + step] for at in range(0, len(content), step))
    return [piece.decode("utf-32-le", "replace").rstrip("\0") for piece in pieces]
