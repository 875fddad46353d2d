"""Image operations in a Keras graph: their names in Keras 2 and 3, and their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .keras_graph import Node, Tensor

SIGN = {"Add": 1.0, "tf.math.add": 1.0, "tf.__operators__.add": 1.0, "tf.nn.bias_add": 1.0}
SIGN |= {"Subtract": -1.0, "tf.math.subtract": -1.0, "tf.__operators__.sub": -1.0}
PRODUCTS = frozenset({"Multiply", "tf.math.multiply", "tf.__operators__.mul"})
QUOTIENTS = frozenset({"TrueDivide", "Divide", "tf.math.truediv", "tf.math.divide", "tf.__operators__.truediv"})
CASTS = frozenset({"Cast", "tf.cast", "tf.convert_to_tensor", "ConvertToTensor"})
JOINS = frozenset({"Stack", "tf.stack", "Concatenate", "tf.concat"})
PARTS = frozenset({"Split", "tf.split", "Unstack", "tf.unstack"})
FLIPS = frozenset({"Flip", "tf.reverse"})
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64", None})


def operands_of(node: Node) -> tuple[Any, bool] | None:
    """The constant operand of an operation on a tensor and a constant, and whether it is the first operand."""
    keywords = {key: value for key, value in node.keywords.items() if key in ("y", "bias", "x", "x1", "x2")}
    values = [*node.arguments, *keywords.values()]
    if len(values) != 2 or sum(isinstance(value, Tensor) for value in values) != 1:
        return None
    is_first = not isinstance(values[0], Tensor)
    return values[0 if is_first else 1], is_first


def numbers_of(value: Any) -> NDArray[np.float64] | None:
    """One number, or one for each channel, from an array with any axes of length 1; None for anything else."""
    if isinstance(value, dict):
        value = value.get("config", {}).get("value") if isinstance(value.get("config"), dict) else None
    if value is None:
        return None
    try:
        numbers = np.asarray(value, np.float64).reshape(-1)
    except (ValueError, TypeError):
        return None
    return numbers if 1 <= numbers.size <= 4 and np.isfinite(numbers).all() else None


def pairs_of(factor: Any, shift: Any, count: int) -> list[tuple[float, float]] | None:
    factors, shifts = numbers_of(factor), numbers_of(shift)
    if factors is None or shifts is None or {factors.size, shifts.size} - {1, count}:
        return None
    both = np.broadcast_arrays(np.resize(factors, count), np.resize(shifts, count))
    return [(float(a), float(b)) for a, b in zip(*both, strict=True)]


def negated(value: Any) -> Any:
    numbers = numbers_of(value)
    return None if numbers is None else -numbers


def inverted(value: Any) -> Any:
    numbers = numbers_of(value)
    return None if numbers is None or not numbers.all() else 1 / numbers


def is_last_axis(node: Node) -> bool:
    axis = {**node.options, **node.keywords}.get("axis", -1 if node.kind == "Concatenate" else None)
    if axis is None and len(node.arguments) > 1:
        axis = node.arguments[1]
    return axis in (-1, 3, [-1], [3])


def channels_of(node: Node, count: int) -> list[int] | None:
    """The channels, of `count`, that `x[..., 2]`, `x[..., ::-1]` or `x[:, :, :, 0:1]` takes; None for other indices."""
    spec = node.keywords.get("slice_spec", node.arguments[1] if len(node.arguments) > 1 else None)
    if not isinstance(spec, list | tuple) or not spec:
        return None
    *before, last = [_slice(each) for each in spec]
    if not (before == [...] or (len(before) == 3 and all(each == slice(None, None, None) for each in before))):
        return None
    if isinstance(last, slice):
        parts = (last.start, last.stop, last.step)
        if not all(part is None or isinstance(part, int) for part in parts) or last.step == 0:
            return None
        return list(range(count))[last]
    return [list(range(count))[last]] if isinstance(last, int) and -count <= last < count else None


def _slice(value: Any) -> Any:
    """One part of an index as Keras 2 writes it; `keras_calls` has parsed those of Keras 3."""
    if isinstance(value, dict):
        if value.get("class_name") == "__ellipsis__":
            return ...
        return slice(value.get("start"), value.get("stop"), value.get("step"))
    return value
