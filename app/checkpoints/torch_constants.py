"""Constants in a network's code: the values of small tensors, and torch's operations on constants alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .symbolic_values import Unknown, Weight
from .torch_signatures import COPIES, SAME

_MAX_CONSTANT = 64
_MAX_NUMBER = 1 << 62
_BINARY: dict[str, Callable[..., Any]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


class Tensors:
    """The file's tensors by name. `values_of` returns None for a tensor that the file does not have."""

    def __init__(self, values_of: Callable[[str], NDArray[Any] | None]) -> None:
        self.values_of = values_of
        self.used: set[str] = set()
        """Names of the tensors that were read as constants."""

    def constant(self, value: Any) -> NDArray[Any] | None:
        """The values of a number, an array or a tensor of the file; None for anything else and for large tensors."""
        if isinstance(value, Weight) and not value.is_transposed:
            found = self.values_of(value.name)
            if found is not None and found.size <= _MAX_CONSTANT:
                self.used.add(value.name)
                return found.astype(np.float64) if found.dtype.kind == "f" else found
            return None
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return np.array(float(value)) if abs(value) < _MAX_NUMBER else None
        return value if isinstance(value, np.ndarray) and value.size <= _MAX_CONSTANT else None


def binary_on_constants(base: str, first: NDArray[Any], second: NDArray[Any]) -> Any:
    """`add`, `sub`, `mul` or `div` of two constants."""
    with np.errstate(all="ignore"):
        return _BINARY[base](first, second)


def unary_on_constant(base: str, value: NDArray[Any], arguments: Mapping[str, Any], label: str) -> Any:
    """An operation on a constant, such as the reshaping of a mean; `Unknown` where it is not supported."""
    try:
        if base in ("view", "reshape"):
            return value.reshape(arguments["size"])
        if base == "unsqueeze":
            return np.expand_dims(value, arguments["dim"])
        if base == "squeeze":
            return value.reshape([size for size in value.shape if size != 1])
        if base in SAME or base in COPIES or base == "slice":
            return value
        if base == "flip":
            return np.flip(value, arguments["dims"])
        if base == "neg":
            return -value
    except (KeyError, TypeError, ValueError):
        pass
    return Unknown(label)
