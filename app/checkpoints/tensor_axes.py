"""TensorFlow's axis order as a view over torch's memory layout, so that the later transposition copies nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TO_TORCH = (3, 2, 0, 1)  # HWIO → OIHW
_TO_TENSORFLOW = (2, 3, 1, 0)


def in_torch_memory(values: NDArray[Any], dtype: str = "<f4") -> NDArray[Any]:
    """The same values with the same axes, in a memory layout whose transposed kernel or matrix is contiguous."""
    if values.ndim == 4:
        return np.ascontiguousarray(values.transpose(_TO_TORCH), dtype).transpose(_TO_TENSORFLOW)
    if values.ndim == 2:
        return np.ascontiguousarray(values.T, dtype).T
    return np.ascontiguousarray(values, dtype) if values.ndim else values.astype(dtype)
