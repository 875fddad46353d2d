"""TorchScript's built-in functions on numbers, booleans, texts, sizes and ranks, such as `eq`, `len` and `int`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .symbolic_values import Node, Size, Unknown, Unread, now

_MAX_NUMBER = 1 << 62
_MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """A node's shape."""

    node: Node


class NoBuiltin(Exception):
    """The function is no built-in function of these arguments."""


def call_builtin(full: str, arguments: Sequence[Any]) -> Any:
    """The result of the function `torch.eq`, for instance. Raises `NoBuiltin`, and `Unread` for RaiseException."""
    name = full.rpartition(".")[2]
    first = now(arguments[0]) if arguments else None
    if name == "RaiseException":
        raise Unread("an error that its code raises")
    if name in _ON_VALUES and all(_is_plain(now(each)) for each in arguments):
        return _ON_VALUES[name](*[now(each) for each in arguments])
    if name in ("__is__", "__isnot__") and arguments[1] is None:
        return (first is None) == (name == "__is__")
    if name == "dim" and isinstance(first, Node | np.ndarray):
        rank = first.rank if isinstance(first, Node) else first.ndim
        return Unknown(full) if rank is None else rank
    if name == "size" and isinstance(first, Node):
        return Size(first, arguments[1]) if len(arguments) > 1 else Sizes(first)
    if name == "len" and isinstance(first, Sizes):
        return Unknown(full) if first.node.rank is None else first.node.rank
    if name in ("NumToTensor", "ScalarImplicit", "Int", "data"):
        return first
    if name in ("tensor", "as_tensor", "scalar_tensor") and _is_numbers(first):
        return np.array(first)
    raise NoBuiltin


def convert(kind: str, value: Any) -> Any:
    """`int`, `float` or `bool` of a value."""
    value = now(value)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, int | float):
        return {"int": int, "float": float, "bool": bool}[kind](value)
    return value if isinstance(value, Size) else Unknown(kind)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= _MAX_ITEMS and all(isinstance(each, bool | int | float) for each in value)
    return isinstance(value, int | float)


def _logical(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*values: Any) -> Any:
        try:
            return function(*values)
        except TypeError:
            return Unknown("a truth")

    return compute


def _numeric(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of numbers within the range of torch's: repeated texts and repeated products would otherwise fill memory."""

    def compute(*values: Any) -> Any:
        if not all(isinstance(value, int | float) and abs(value) < _MAX_NUMBER for value in values):
            return Unknown("a number")
        try:
            return function(*values)
        except ArithmeticError:
            return Unknown("a number")

    return compute


_ON_VALUES: dict[str, Callable[..., Any]] = {
    "__not__": _logical(lambda a: not a),
    "eq": _logical(lambda a, b: a == b),
    "ne": _logical(lambda a, b: a != b),
    "lt": _logical(lambda a, b: a < b),
    "le": _logical(lambda a, b: a <= b),
    "gt": _logical(lambda a, b: a > b),
    "ge": _logical(lambda a, b: a >= b),
    "add": _numeric(lambda a, b: a + b),
    "sub": _numeric(lambda a, b: a - b),
    "mul": _numeric(lambda a, b: a * b),
    "div": _numeric(lambda a, b: a / b),
    "neg": _numeric(lambda a: -a),
    "__and__": _logical(lambda a, b: a and b),
    "__or__": _logical(lambda a, b: a or b),
}
