"""Symbolic values of a network's code: graph nodes, the file's tensors, sizes and values that are not computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..layers import Layer


class Unread(Exception):
    """The code cannot be followed. The message names the construct or operation that is not supported."""


@dataclass(eq=False, slots=True)
class Node:
    """The result of an operation. `op` is one that `graph_facts` knows, or "unknown"."""

    op: str
    inputs: tuple[Node, ...] = ()
    label: str = ""
    """The operation as the file names it."""
    layer: Layer | None = None
    weights: tuple[str, ...] = ()
    """Of a layer: the names of its tensors, the weight first."""
    data: Any = None
    rank: int | None = None
    later: Node | None = None
    """The result of an in-place operation on the variable, which later reads of the variable see."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the file."""

    name: str
    is_transposed: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """A node's size along an axis."""

    node: Node
    axis: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A number, boolean, text or tensor that is not computed."""

    label: str


def now(value: Any) -> Any:
    """The value after the in-place operations on it."""
    while isinstance(value, Node) and value.later is not None:
        value = value.later
    return value
