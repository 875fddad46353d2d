"""Describes an unpickled document as JSON, within limits. Part of the program `inert_unpickler`.

Numbers, booleans and texts stand for themselves. Everything else is an object with the keys of one row:

    {"t": [storage, type, offset, shape, stride]}   a tensor
    {"m": [[key, value], …]}                        a mapping
    {"l": [value, …]}                               a list, a tuple or a set
    {"o": name, "s": state, "a": [argument, …]}     an object of the class `name`
    {"c": name}                                     a class or a function by itself
    {"b": text}                                     bytes, as latin-1
    {"r": true}                                     not described: it holds itself, lies too deep, or is over a limit
"""

from __future__ import annotations

import struct
from encodings import utf_32_le  # noqa: F401 - once limited, this process can open no file to import it from
from typing import Any

from .pickle_stand_ins import MAX_NAME, StandIn, Tensor

_MAX_PARTS = 150_000
_MAX_DEPTH = 90
_MAX_TEXT_IN_ALL = 2 << 20
_MAX_BYTES = 1 << 19
_MAX_NUMBER = 1 << 62
# The number of entries that are described: of a list of texts or a mapping to plain values, and of others.
_MAX_TEXTS = 100_000
_MAX_ITEMS = 2_048


class TooMuch(Exception):
    """The document is over a limit."""


class Describer:
    def __init__(self) -> None:
        self._parts = 0
        self._text = 0
        self._open: set[int] = set()

    def describe(self, value: Any, depth: int = 0) -> Any:
        """Raises `TooMuch`."""
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise TooMuch("it has more parts than any checkpoint has")
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < _MAX_NUMBER else None
        if isinstance(value, str | bytes | bytearray):
            if self._text > _MAX_TEXT_IN_ALL:
                return {"r": True}
            if isinstance(value, str):
                return self._limited(value[:MAX_NAME])
            return {"b": self._limited(value[:_MAX_BYTES].decode("latin-1"))}
        if isinstance(value, Tensor):
            return {"t": value.place}
        if isinstance(value, type):
            return {"c": self._limited(str(getattr(value, "name", value.__name__))[:MAX_NAME])}
        if id(value) in self._open or depth > _MAX_DEPTH:
            return {"r": True}
        self._open.add(id(value))
        try:
            return self._compound(value, depth + 1)
        finally:
            self._open.discard(id(value))

    def _compound(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {"m": self._entries(value, depth)}
        if isinstance(value, list | tuple | set | frozenset):
            return {"l": self._items(value, depth)}
        if not isinstance(value, StandIn):
            return {"o": type(value).__name__[:MAX_NAME]}
        scalar = _scalar(value)
        if scalar is not None:
            return scalar
        is_module = isinstance(value.state, dict) and "_modules" in value.state
        if value.items and not is_module:
            return {"m": self._entries(value.items, depth)}
        described: dict[str, Any] = {"o": self._limited(value.name[:MAX_NAME])}
        if value.state is not None:
            described["s"] = self.describe(value.state, depth)
        if value.arguments:
            described["a"] = self._items(value.arguments, depth)
        return described

    def _entries(self, entries: dict[Any, Any], depth: int) -> list[Any]:
        pairs: list[Any] = []
        for key, value in entries.items():
            name = _scalar(key) if isinstance(key, StandIn) else key
            if not isinstance(name, str | int):
                continue
            is_plain = isinstance(value, str | int | float | Tensor)
            if len(pairs) < (_MAX_TEXTS if is_plain else _MAX_ITEMS):
                key = self._limited(name[:MAX_NAME]) if isinstance(name, str) else self.describe(name)
                pairs.append([key, self.describe(value, depth)])
        return pairs

    def _items(self, items: Any, depth: int) -> list[Any]:
        described: list[Any] = []
        for item in items:
            if len(described) >= (_MAX_TEXTS if isinstance(item, str) else _MAX_ITEMS):
                # This marks the list as incomplete: a reader of class names must not take the first part for all.
                described.append({"r": True})
                break
            described.append(self.describe(item, depth))
        return described

    def _limited(self, text: str) -> str:
        self._text += len(text)
        if self._text > 2 * _MAX_TEXT_IN_ALL:
            raise TooMuch("it has more text than any checkpoint has")
        # Lone surrogates cannot be encoded.
        return text.encode("utf-8", "replace").decode("utf-8")


def _scalar(value: StandIn) -> int | float | str | None:
    """A numpy scalar as a number or text of Python's; None for any other object."""
    if not value.name.endswith("multiarray.scalar") or len(value.arguments) != 2:
        return None
    dtype, content = value.arguments
    kind = dtype.arguments[0] if isinstance(dtype, StandIn) and dtype.arguments else None
    if isinstance(content, str):
        # Python 2 wrote bytes as a text.
        content = content.encode("latin-1", "replace")
    if not isinstance(kind, str) or not isinstance(content, bytes) or len(content) > 4 * MAX_NAME:
        return None
    if kind[:1] in ("i", "u"):
        return int.from_bytes(content, "little", signed=kind[0] == "i") if len(content) <= 8 else None
    if kind in ("f2", "f4", "f8") and len(content) == int(kind[1]):
        return float(struct.unpack("<" + {"f2": "e", "f4": "f", "f8": "d"}[kind], content)[0])
    return content.decode("utf-32-le", "replace").rstrip("\0") if kind[:1] == "U" else None
