"""The weights in a pickle's description: a state dict, a whole module, or a mapping around one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .families import find_places
from .pickled_weights import MAX_TENSORS, Place, place_of, printable, too_much

# Keys of the weights in training scripts' files, in order of preference: averaged weights first.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema"),
    *("state_dict", "model", "model_state_dict", "net", "weights"),
)
# Keys of the training's own tensors, which can be as many as the weights and are never taken for them.
_TRAINING = re.compile(
    r"(?:^|_)(?:optims?|optimi[sz]ers?|opt|sgd|adamw?|lr_\w+|schedulers?|grad_?scaler|scaler|amp|callbacks|loops|rng)"
    r"(?:_?(?:states?|dicts?|[0-9a-z]))*$",
    re.IGNORECASE,
)
_MAX_MODULES = 5_000
_MAX_DEPTH = 32
_MAX_NAME = 512
# The share of the largest mapping's tensors that makes a wrapper's mapping a whole network.
_WHOLE = 0.95

Entries = dict[Any, Any]


@dataclass(frozen=True, slots=True)
class Located:
    """The weights of a document."""

    tensors: Mapping[str, Place]
    modules: Mapping[str, Mapping[str, Any]]
    """The modules of a whole pickled module by name, in the order of registration, with their attributes."""
    found: str
    """The kind of the document, for an error text."""
    levels: tuple[tuple[str, Entries], ...] = ()
    """The mappings that lead to the weights, and the attributes of a module, each with its name."""
    rivals: tuple[str, ...] = ()
    """Keys of several mappings with the same names. All are in `tensors`, prefixed with their keys."""


def entries_of(value: Any) -> Entries | None:
    """A mapping's entries; None for any other value."""
    return {key: each for key, each in value["m"]} if isinstance(value, dict) and "m" in value else None


def attributes_of(value: Any) -> Entries | None:
    """An object's attributes; None for any other value."""
    return entries_of(value.get("s")) if isinstance(value, dict) and "o" in value else None


def is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "t" in value


def module_of(value: Any) -> Entries | None:
    """A module's attributes; None for any other value."""
    attributes = attributes_of(value)
    if attributes is None:
        return None
    is_scripted = str(value["o"]).startswith("__torch__.")
    is_module = entries_of(attributes.get("_modules")) is not None and "_parameters" in attributes
    return attributes if is_scripted or is_module else None


def locate_weights(document: Any, path: Path) -> Located:
    """The weights in `document`. Raises `CheckpointError` if it has several values with weights, one a module."""
    levels: list[tuple[str, Entries]] = []
    name = ""
    # Up to a limit: a mapping in a file may contain itself.
    for _ in range(_MAX_DEPTH):
        if module_of(document) is not None:
            return _of_module(document, levels, path)
        entries = entries_of(document)
        if entries is None:
            return Located({}, {}, f"a {_kind(document)}", tuple(levels))
        levels.append((name, entries))
        inner = {key: size for key, value in entries.items() if (size := _size(key, value))}
        listed = [key for key in WRAPPERS if key in inner]
        direct = [key for key, value in entries.items() if is_tensor(value)]
        largest = max(inner.values(), default=0)
        if any(inner[key] >= largest / 2 for key in listed):
            chosen = next(key for key in listed if inner[key] >= _WHOLE * largest)
        elif not inner or len(direct) > largest:
            break
        elif len(inner) == 1:
            chosen = next(iter(inner))
        else:
            return _of_several(entries, list(inner), levels, path)
        document, name = entries[chosen], chosen
    entries = entries_of(document) or {}
    tensors = {str(key): place_of(value["t"]) for key, value in entries.items() if is_tensor(value)}
    keys = ", ".join(printable(str(key))[:40] for key in list(entries)[:5])
    return Located(tensors, {}, f"a mapping with the keys {keys}", tuple(levels))


def _size(key: Any, value: Any, depth: int = 0) -> int:
    """The number of tensors in a mapping or a module and in those within it; 0 for the training's own."""
    if not isinstance(key, str) or _TRAINING.search(key) or depth > _MAX_DEPTH:
        return 0
    module = module_of(value)
    members = list(_members(module) if module is not None else (entries_of(value) or {}).items())
    return sum(is_tensor(each) or _size(name, each, depth + 1) for name, each in members)


def _of_module(document: Any, levels: list[tuple[str, Entries]], path: Path) -> Located:
    tensors: dict[str, Place] = {}
    modules: dict[str, dict[str, Any]] = {}
    _flatten(document, "", tensors, modules, path)
    levels = [*levels, ("the module's attributes", module_of(document) or {})]
    # The network in a wrapper (DataParallel, a custom class) may have the attributes that the user set.
    inner = module_of(document)
    for _ in range(_MAX_DEPTH):
        children = [each for _, each in (entries_of((inner or {}).get("_modules")) or {}).items() if module_of(each)]
        if len(children) != 1:
            break
        inner = module_of(children[0])
        levels.append(("the module's attributes", inner or {}))
    return Located(tensors, modules, f"a pickled {printable(str(document['o']))}", tuple(levels))


def _of_several(entries: Entries, keys: list[str], levels: list[tuple[str, Entries]], path: Path) -> Located:
    """Several mappings: the parts of one network, or several networks."""
    if any(module_of(entries[key]) for key in keys):
        raise CheckpointError(
            f"{path} holds {len(keys)} things that have weights, {_quoted(keys)}, and which one to serve is not said. "
            f"Save that one alone: torch.save(model.state_dict(), 'weights.pth')."
        )
    groups = {key: dict(_tensors_in(entries[key])) for key in keys}
    tensors = {f"{key}.{name}": place for key, group in groups.items() for name, place in group.items()}
    is_shared = len({name for group in groups.values() for name in group}) < len(tensors)
    rivals = tuple(keys) if is_shared and len(find_places(tensors)) != 1 else ()
    return Located(tensors, {}, f"a mapping with the keys {_quoted(keys)}", tuple(levels), rivals)


def _tensors_in(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Place]]:
    for key, each in (entries_of(value) or {}).items():
        if is_tensor(each):
            yield f"{prefix}{key}"[:_MAX_NAME], place_of(each["t"])
        elif depth < _MAX_DEPTH and isinstance(key, str):
            yield from _tensors_in(each, f"{prefix}{key}.", depth + 1)


def _flatten(
    module: Any, prefix: str, tensors: dict[str, Place], modules: dict[str, dict[str, Any]], path: Path, depth: int = 0
) -> None:
    """Record a module and its descendants, in the order of registration."""
    if len(modules) >= _MAX_MODULES or len(tensors) > MAX_TENSORS or depth > _MAX_DEPTH or len(prefix) > _MAX_NAME:
        raise too_much(path, "it has modules without end")
    attributes = module_of(module) or {}
    modules[prefix.removesuffix(".")] = {"class": str(module["o"])[:200], **_facts(attributes)}
    for name, value in _members(attributes):
        if is_tensor(value):
            tensors[f"{prefix}{name}"] = place_of(value["t"])
        elif module_of(value) is not None:
            _flatten(value, f"{prefix}{name}.", tensors, modules, path, depth + 1)
        elif isinstance(value, dict) and "r" in value:
            raise too_much(path, "it has modules without end")


def _members(attributes: Entries) -> Iterator[tuple[str, Any]]:
    """A module's tensors and modules by name: torch keeps them in mappings, TorchScript among the attributes."""
    if "_modules" not in attributes:
        yield from ((str(name), value) for name, value in attributes.items())
        return
    for group in ("_parameters", "_buffers", "_modules"):
        yield from ((str(name), value) for name, value in (entries_of(attributes.get(group)) or {}).items())
    # Unregistered tensors of a custom class that normalises its input.
    yield from ((name, value) for name, value in attributes.items() if name in ("mean", "std") and is_tensor(value))


def _facts(attributes: Entries) -> dict[str, Any]:
    """A module's attributes that are numbers, booleans or short texts, and whether it has hooks or its own forward."""
    facts: dict[str, Any] = {}
    for key, value in attributes.items():
        if not isinstance(key, str) or key.startswith("_"):
            continue
        numbers = value["l"] if isinstance(value, dict) and "l" in value else None
        if isinstance(value, bool | int | float | str) or (value is None and key in ("dim", "output_size", "act")):
            facts[key[:80]] = value
        elif numbers is not None and len(numbers) <= 8 and all(isinstance(n, int | float | None) for n in numbers):
            facts[key[:80]] = numbers
        elif isinstance(value, dict) and "c" in value:
            facts[key[:80]] = str(value["c"])[:200]
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    if any(entries_of(attributes.get(key)) for key in hooks):
        facts["hooks"] = True
    if "forward" in attributes and "_modules" in attributes:
        facts["forward"] = True
    return facts


def _kind(document: Any) -> str:
    if is_tensor(document):
        return "Tensor"
    if isinstance(document, dict):
        return printable(str(document.get("o") or document.get("c") or "list"))
    return type(document).__name__


def _quoted(keys: list[str]) -> str:
    return " and ".join(repr(printable(key)[:60]) for key in keys[:3])
