"""torch's add, sub, mul and div: sums of two nodes, and per-channel scale and shift of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .symbolic_values import Node, Unknown
from .torch_constants import Tensors, binary_on_constants

ARITHMETIC = ("add", "sub", "mul", "div", "rsub")


def arithmetic(base: str, arguments: Mapping[str, Any], tensors: Tensors, label: str) -> Any:
    """The result of an operation of `ARITHMETIC`: a constant, or a node `add`, `affine` or `unknown`."""
    one, two = arguments["self"], arguments.get("other")
    factor = arguments.get("alpha", 1)
    if base == "rsub":
        one, two, base = two, one, "sub"
    if factor != 1 and not isinstance(two, Node):
        return Node("unknown", tuple(each for each in (one, two) if isinstance(each, Node)), label)
    first, second = tensors.constant(one), tensors.constant(two)
    if first is not None and second is not None:
        value = binary_on_constants(base, first, second)
        return value.item() if value.ndim == 0 and not isinstance(one, np.ndarray) else value
    if isinstance(one, Node) and isinstance(two, Node):
        is_sum = base == "add" and factor == 1
        return Node("add" if is_sum else "unknown", (one, two), label, rank=one.rank)
    node = one if isinstance(one, Node) else two
    constant = second if isinstance(one, Node) else first
    if not isinstance(node, Node):
        return Unknown(label)
    channels = None if constant is None else _per_channel(constant)
    if channels is None:
        return Node("unknown", (node,), label, rank=node.rank)
    with np.errstate(all="ignore"):
        scale, shift = _scale_and_shift(base, channels, isinstance(one, Node))
    if scale is None:
        return Node("unknown", (node,), label, rank=node.rank)
    return Node("affine", (node,), label, data=(scale, shift), rank=node.rank)


def _per_channel(constant: NDArray[Any]) -> NDArray[np.float64] | None:
    """One number for each of three channels of an NCHW image; None for constants of other shapes."""
    values = constant.astype(np.float64)
    if values.size == 1:
        return np.repeat(values.reshape(1), 3)
    return values.reshape(3) if values.shape in ((3, 1, 1), (1, 3, 1, 1)) else None


def _scale_and_shift(
    base: str, constant: NDArray[np.float64], is_first: bool
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Of `x op constant` where the node is first, else of `constant op x`; no scale for `constant / x`."""
    one, zero = np.ones(3), np.zeros(3)
    if base == "add":
        return one, constant
    if base == "sub":
        return (one, -constant) if is_first else (-one, constant)
    if base == "mul":
        return constant, zero
    return (1 / constant, zero) if is_first else (None, zero)
