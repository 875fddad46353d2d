"""A call of a torch operation on a graph node: its arguments by name, and the nodes that it may result in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..layers import Layer
from .symbolic_values import Node
from .torch_constants import Tensors


@dataclass(frozen=True, slots=True)
class Call:
    given: Node
    """The argument `self`."""
    arguments: Mapping[str, Any]
    rest: Sequence[Any]
    """Positional arguments beyond the operation's signature."""
    label: str
    """The operation as the file names it."""
    tensors: Tensors

    def node(self, op: str, *, data: Any = None, rank: int | None = None) -> Node:
        return Node(op, (self.given,), self.label, data=data, rank=rank)

    def layer(self, layer: Layer, weights: tuple[str, ...] = (), *, data: Any = None, rank: int | None = None) -> Node:
        return Node("layer", (self.given,), self.label, layer, weights, data, rank)


Handler = Callable[[Call], Node | None]
"""Returns None, or raises KeyError, TypeError or ValueError, for arguments that are not supported."""


def pair(value: Any) -> tuple[int, int]:
    """Height and width of an argument that is one integer for both, or a list."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= 2
        or not all(isinstance(each, int) for each in value)
    ):
        raise ValueError
    return (value[0], value[-1])
