"""TensorFlow's axis order of kernels and dense weights, converted to torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TO_TORCH = (3, 2, 0, 1)  # HWIO → OIHW
_TO_TENSORFLOW = (2, 3, 1, 0)


def in_torch_memory(values: NDArray[Any], dtype: str = "<f4") -> NDArray[Any]:
    """The same values and axes in torch's memory layout, so that `to_torch_axes` copies nothing."""
    if values.ndim == 4:
        return np.ascontiguousarray(values.transpose(_TO_TORCH), dtype).transpose(_TO_TENSORFLOW)
    if values.ndim == 2:
        return np.ascontiguousarray(values.T, dtype).T
    return np.ascontiguousarray(values, dtype) if values.ndim else values.astype(dtype)


def to_torch_axes(values: NDArray[Any]) -> NDArray[Any]:
    """A kernel from HWIO to OIHW, a dense weight from `(in, out)` to `(out, in)`."""
    if values.ndim == 4:
        return np.ascontiguousarray(values.transpose(_TO_TORCH))
    return np.ascontiguousarray(values.T) if values.ndim == 2 else values
