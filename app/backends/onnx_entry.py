"""Finds where a graph that takes pixels has its normalised image, so that a tensor can be given there instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.onnx_graph import Graph

# With constants beside their one input, they change each channel by itself: layout, order and a line.
_LINES = frozenset({"Cast", "Transpose", "Identity", "Slice", "Gather", "Mul", "Add", "Sub", "Div", "DequantizeLinear"})
# Of the largest value.
_ROUNDING = {"float32": 1e-5, "float16": 2e-3}


@dataclass(frozen=True, slots=True)
class Front:
    """The first operators of a graph, which do nothing but normalise the image."""

    end: str
    """The value that they make; the rest of the graph is made of nothing else."""
    outputs: frozenset[str]
    """Every value that they make."""


def find_front(model: Any, image: str) -> Front:
    """Everything in front of the first operator that mixes pixels or channels. `model`: onnx.ModelProto."""
    constants = Graph(model).constants
    name, outputs = image, set()
    while True:
        readers = [node for node in model.graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type not in _LINES or readers[0].domain:
            break
        others = [each for each in readers[0].input if each and each != name]
        if any(each not in constants for each in others) or len(readers[0].output) != 1:
            break
        name = readers[0].output[0]
        outputs.add(name)
    return Front(name, frozenset(outputs))


@dataclass(frozen=True, slots=True)
class Line:
    """`scale * tensor + shift` of each channel makes the value at the end of a front.

    With `is_reversed` the tensor's channels are put in the opposite order first, and `scale` and `shift` are in that
    order: the first convolution's weights are then in the order of the pixels.
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    is_nhwc: bool
    dtype: np.dtype[Any]
    is_reversed: bool = False

    @property
    def is_identity(self) -> bool:
        return bool((self.scale == 1).all() and (self.shift == 0).all())


def fit_line(found: NDArray[Any], tensor: NDArray[np.float32], is_half: bool = False) -> Line | None:
    """The line from `tensor` (N, 3, H, W) to `found`, its values at the end of a front; None where there is none.

    A front that ends in other numbers than the normalised image has the rest of the normalisation folded into the first
    convolution. `tensor` must have at least two values in each channel; with `is_half` the front rounds to float16.
    """
    is_nhwc = found.shape != tensor.shape
    planes = found.transpose(0, 3, 1, 2) if is_nhwc and found.ndim == 4 else found
    if planes.shape != tensor.shape or found.dtype.kind != "f":
        return None
    tolerance = _ROUNDING["float16" if is_half or found.dtype == np.float16 else "float32"] * float(
        np.abs(planes).max()
    )
    for is_reversed in (False, True):
        given = tensor[:, ::-1] if is_reversed else tensor
        if np.abs(planes - given).max() <= tolerance:
            return Line(np.ones(3), np.zeros(3), is_nhwc, found.dtype, is_reversed)
    for is_reversed in (False, True):
        given = tensor[:, ::-1] if is_reversed else tensor
        lines = [np.polyfit(given[:, c].ravel().astype(np.float64), planes[:, c].ravel(), 1) for c in range(3)]
        scale, shift = np.array(lines).T
        if np.abs(planes - (given * scale.reshape(3, 1, 1) + shift.reshape(3, 1, 1))).max() <= tolerance:
            return Line(scale, shift, is_nhwc, found.dtype, is_reversed)
    return None
