"""Layers without tensors as ONNX nodes: pools and activations, with torch's rules for what hangs over the edge."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..layers import Layer
from .description import Step, Zeros, same_zeros
from .onnx_file import INT64, OnnxFile, Tensor

Pair = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What a node gives, without the axis of the images."""

    name: str
    channels: int
    size: Pair
    """Height and width; () behind flatten."""

    def as_(self, name: str) -> Result:
        """The same shape under the name of another node."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True)
class Window:
    """Where a convolution or a pool looks."""

    pads: Zeros
    size: Pair
    """Height and width of what it gives."""


def window(step: Step, size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Window:
    """Of a convolution. Raises `CheckpointError` where its input is smaller than its kernel."""
    if step.zeros == "same":
        (top, bottom), (left, right) = (same_zeros(*each) for each in zip(size, kernel, stride, strict=True))
        zeros = (top, left, bottom, right)
    else:
        zeros = step.zeros or (0, 0, 0, 0)
    pads = (zeros[0] + padding[0], zeros[1] + padding[1], zeros[2] + padding[0], zeros[3] + padding[1])
    given = tuple(
        (size[axis] + pads[axis] + pads[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    )
    return Window(pads, _checked(step.name, given, size))


def _checked(name: str, given: Pair, size: Pair) -> Pair:
    if min(given) < 1:
        raise CheckpointError(
            f"The checkpoint's {name} cannot take {'×'.join(map(str, size))} points: the images are too small for it."
        )
    return given


def pool_zeros(file: OnnxFile, step: Step, source: Result) -> Result:
    """`source` with the zeros that the pool `step` has around it: numbers, which its own padding are not."""
    if not isinstance(step.zeros, tuple):
        return source
    return _with_zeros(file, source, step.zeros, f"{step.name}.zeros")


def _with_zeros(file: OnnxFile, source: Result, zeros: Zeros, name: str, value: float = 0.0) -> Result:
    """`source` with another `value` around it, where that is given."""
    top, left, bottom, right = zeros
    pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    tensor = file.add_tensor(Tensor(f"{name}.pads", pads.shape, lambda: pads, INT64))
    inputs = (source.name, tensor, *([_number(file, f"{name}.value", value)] if value else []))
    height, width = source.size
    size = (height + top + bottom, width + left + right)
    return Result(file.add_node("Pad", inputs, name), source.channels, size)


def pool(file: OnnxFile, layer: Layer, source: Result, name: str) -> Result:
    assert layer.kernel is not None
    assert layer.stride is not None
    padding, dilation = layer.padding or (0, 0), layer.dilation or (1, 1)
    axes = [
        _axis(source.size[axis], layer.kernel[axis], layer.stride[axis], padding[axis], dilation[axis], layer.ceil_mode)
        for axis in (0, 1)
    ]
    size = _checked(layer.name, tuple(each[0] for each in axes), source.size)
    if layer.kind == "average_pool" and layer.count_include_pad and layer.ceil_mode and any(padding):
        # torch counts its padding and nothing beyond it.
        source = _with_zeros(file, source, (*padding, *padding), f"{name}.zeros")
        padding = (0, 0)
    pads = (padding[0], padding[1], padding[0] + axes[0][1], padding[1] + axes[1][1])
    if any(pads[axis + 2] >= layer.kernel[axis] for axis in (0, 1)):
        # A dilated window's, which ONNX Runtime does not take as the pool's own.
        source, pads = _with_zeros(file, source, pads, f"{name}.padded", -np.inf), (0, 0, 0, 0)
    if layer.kind == "max_pool":
        node = file.add_node(
            "MaxPool",
            (source.name,),
            name,
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=pads,
            dilations=dilation,
        )
    else:
        is_counted = layer.count_include_pad and not layer.ceil_mode
        node = file.add_node(
            "AveragePool",
            (source.name,),
            name,
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=pads,
            count_include_pad=int(is_counted),
        )
    return Result(node, source.channels, size)


def _axis(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> tuple[int, int]:
    """Points that a pool gives along an axis, and how far its last window hangs over the padding behind."""
    reach = dilation * (kernel - 1) + 1
    room = size + 2 * padding - reach
    points = (-(-room // stride) if ceil_mode else room // stride) + 1
    # A window that would begin in the padding behind is left out (ATen/native/Pool.h).
    if ceil_mode and (points - 1) * stride >= size + padding:
        points -= 1
    return points, max(0, (points - 1) * stride + reach - size - 2 * padding)


def adaptive_pool(file: OnnxFile, layer: Layer, source: Result, name: str) -> Result:
    """To a given number of points; a point's window is from ⌊i·n/points⌋ up to ⌈(i+1)·n/points⌉."""
    assert layer.kernel is not None
    is_max, points = layer.kind == "adaptive_max_pool", layer.kernel
    if points == (1, 1):
        operator = "GlobalMaxPool" if is_max else "GlobalAveragePool"
        return Result(file.add_node(operator, (source.name,), name), source.channels, points)
    bounds = [_bounds(size, count) for size, count in zip(source.size, points, strict=True)]
    widths = [{end - begin for begin, end in each} for each in bounds]
    if all(size % count == 0 for size, count in zip(source.size, points, strict=True)):
        kernel = tuple(width.pop() for width in widths)
        node = file.add_node(
            "MaxPool" if is_max else "AveragePool", (source.name,), name, kernel_shape=kernel, strides=kernel
        )
    elif is_max:
        node = _largest(file, source.name, bounds, name)
    else:
        rows, columns = (_means(each) for each in bounds)
        left = file.add_tensor(Tensor(f"{name}.rows", rows.shape, lambda: rows))
        right = file.add_tensor(Tensor(f"{name}.columns", columns.T.shape, lambda: columns.T))
        node = file.add_node("MatMul", (left, source.name), f"{name}.of_rows")
        node = file.add_node("MatMul", (node, right), name)
    return Result(node, source.channels, points)


def _bounds(size: int, points: int) -> list[tuple[int, int]]:
    return [(point * size // points, -(-(point + 1) * size // points)) for point in range(points)]


def _means(bounds: list[tuple[int, int]]) -> NDArray[np.float32]:
    """The matrix that takes each window's mean."""
    matrix = np.zeros((len(bounds), bounds[-1][1]), np.float32)
    for point, (begin, end) in enumerate(bounds):
        matrix[point, begin:end] = 1 / (end - begin)
    return matrix


def _largest(file: OnnxFile, source: str, bounds: list[list[tuple[int, int]]], name: str) -> str:
    """Each window's largest value, of rows and then of columns."""
    for axis, each in enumerate(bounds, start=2):
        width = max(end - begin for begin, end in each)
        # A shorter window has its last point again.
        places = np.array([[min(begin + step, end - 1) for step in range(width)] for begin, end in each], np.int64)
        axes = np.array([axis + 1], np.int64)
        step = f"{name}.{axis}"
        tensors = [
            file.add_tensor(Tensor(f"{step}.places", places.shape, lambda places=places: places, INT64)),  # type: ignore[misc]
            file.add_tensor(Tensor(f"{step}.axes", axes.shape, lambda axes=axes: axes, INT64)),  # type: ignore[misc]
        ]
        source = file.add_node("Gather", (source, tensors[0]), f"{step}.windows", axis=axis)
        output = name if axis == 3 else f"{step}.largest"
        source = file.add_node("ReduceMax", (source, tensors[1]), output, keepdims=0)
    return source


# ONNX's operator where it is one node: torch's attributes are its defaults, or stand here.
_OPERATORS: dict[str, tuple[str, dict[str, float | str]]] = {
    "relu": ("Relu", {}),
    "selu": ("Selu", {}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "mish": ("Mish", {}),
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
}
# Those that a checkpoint may give a number: the operator, and torch's default.
_VALUED = {"leaky_relu": ("LeakyRelu", 0.01), "elu": ("Elu", 1.0)}


def activation(file: OnnxFile, layer: Layer, source: str, name: str) -> str:
    if layer.kind == "relu6":
        bounds = [_number(file, f"{name}.{bound}", value) for bound, value in (("least", 0.0), ("most", 6.0))]
        return file.add_node("Clip", (source, *bounds), name)
    if layer.kind == "silu":
        gate = file.add_node("Sigmoid", (source,), f"{name}.gate")
        return file.add_node("Mul", (source, gate), name)
    if layer.kind in _VALUED:
        operator, default = _VALUED[layer.kind]
        return file.add_node(operator, (source,), name, alpha=default if layer.value is None else layer.value)
    operator, attributes = _OPERATORS[layer.kind]
    return file.add_node(operator, (source,), name, **attributes)


def _number(file: OnnxFile, name: str, value: float) -> str:
    return file.add_tensor(Tensor(name, (), lambda: np.array(value, np.float32)))
