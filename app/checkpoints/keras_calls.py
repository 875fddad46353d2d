"""How Keras's configurations write a layer's calls (`inbound_nodes`), in Keras 2 and in Keras 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pointer:
    """A reference in the configuration to another call's output."""

    name: str
    number: int
    index: int


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keywords, with a `Pointer` for each output of another call."""


def read_call(entry: Mapping[str, Any], number: int, names: Mapping[str, Any]) -> Call:
    """Call `number` of a layer; `names` are the layers that it can refer to."""
    calls = entry.get("inbound_nodes") or []
    if not calls:
        return (), {}
    call = calls[number]
    if isinstance(call, dict):
        keywords = {key: _keras_3(value) for key, value in call["kwargs"].items()}
        return tuple(_keras_3(each) for each in call["args"]), keywords
    return _keras_2(call, names)


def _keras_2(call: list[Any], names: Mapping[str, Any]) -> Call:
    """`[[name, number, index, keywords], …]`, or one of these alone."""
    references = [call] if isinstance(call[0], str) else call
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for reference in references:
        name, number, index = reference[:3]
        arguments.append(index if name == "_CONSTANT_VALUE" else Pointer(name, number, index))
        for key, value in (reference[3] if len(reference) > 3 else {}).items():
            keywords[key] = _keras_2_value(value, names)
    return tuple(arguments), keywords


def _keras_2_value(value: Any, names: Mapping[str, Any]) -> Any:
    is_reference = isinstance(value, list) and len(value) == 3 and isinstance(value[0], str)
    if is_reference and value[0] in names:
        return Pointer(*value)
    return [_keras_2_value(each, names) for each in value] if isinstance(value, list) else value


def _keras_3(value: Any) -> Any:
    """An argument as Keras 3 writes it: tensors, arrays and slices are dicts with a class."""
    if isinstance(value, list):
        return [_keras_3(each) for each in value]
    if not isinstance(value, dict):
        return value
    kind, config = value.get("class_name"), value.get("config")
    if kind == "__keras_tensor__" and isinstance(config, dict):
        return Pointer(*config["keras_history"])
    if kind in ("__tensor__", "__numpy__") and isinstance(config, dict):
        return config["value"]
    if kind == "__ellipsis__":
        return ...
    if kind == "__slice__" and isinstance(config, dict):
        return slice(*(_keras_3(config.get(key)) for key in ("start", "stop", "step")))
    return value


def read_references(value: Any) -> list[tuple[str, int, int]]:
    """The references of `input_layers` or `output_layers`: one `[name, number, index]`, or a list (or dict) of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if value and isinstance(value[0], str):
        value = [value]
    return [(str(name), int(number), int(index)) for name, number, index in value]


def pointers_in(value: Any) -> Iterator[Pointer]:
    if isinstance(value, Pointer):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from pointers_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from pointers_in(each)
