"""A description realised as an ONNX graph, with its normalisations folded into the layers before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import Preprocessing
from .description import INPUT, Description, Step, uses
from .onnx_file import FLOAT, UINT8, OnnxFile, Tensor, value_info
from .onnx_layers import Result, activation, adaptive_pool, pool, pool_zeros, window

Weights = Mapping[str, NDArray[Any]]
OPSET = 20
PIXELS, PLANES, LOGITS = "pixels", "planes", "logits"
_LINEAR = ("convolution", "linear")


def write_graph(
    description: Description, weights: Weights, size: tuple[int, int], preprocessing: Preprocessing | None
) -> OnnxFile:
    """The graph of `description` with `weights`, which fit it, for any number of images of `size` (height, width).

    With `preprocessing` its input is `pixels`, `(N, H, W, 3)` uint8 RGB: channel order and normalisation are in the
    graph, in float32 as the torch backend computes them. Without, it is `planes`, `(N, 3, H, W)` float32, prepared.
    The output is `logits`, `(N, classes)` float32. Raises `CheckpointError` where a layer cannot take its input.
    """
    return _Writer(description, weights, size, preprocessing).write()


@dataclass(frozen=True, slots=True)
class _Affine:
    """`scale · x + shift` of each channel: a batch normalisation at inference, in float64."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def of(cls, step: Step, weights: Weights) -> _Affine:
        gamma, beta, mean, variance = (
            weights[f"{step.name}.{leaf}"].astype(np.float64)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        assert step.layer.value is not None
        scale = gamma / np.sqrt(variance + step.layer.value)
        return cls(scale, beta - mean * scale)


class _Writer:
    def __init__(
        self, description: Description, weights: Weights, size: tuple[int, int], preprocessing: Preprocessing | None
    ) -> None:
        self._steps = description.computed()
        self._weights = weights
        self._size = size
        self._preprocessing = preprocessing
        self._file = OnnxFile(OPSET)
        self._results: dict[str, Result] = {}
        counts = uses(self._steps)
        before = {step.name: step for step in self._steps}
        self._folded: dict[str, Step] = {}
        """A convolution or dense layer → the normalisation behind it that it does the work of."""
        for step in self._steps:
            source = before.get(step.inputs[0])
            is_behind = source is not None and source.kind in _LINEAR and counts[source.name] == 1
            if step.kind == "batch_norm" and is_behind and source is not None:
                self._folded[source.name] = step

    def write(self) -> OnnxFile:
        self._results[INPUT] = self._input()
        for step in self._steps[:-1]:
            self._add(step, step.name)
        last = self._steps[-1]
        self._add(last, LOGITS)
        self._file.output = value_info(LOGITS, FLOAT, ("N", self._results[last.name].channels))
        return self._file

    def _input(self) -> Result:
        height, width = self._size
        if self._preprocessing is None:
            self._file.input = value_info(PLANES, FLOAT, ("N", 3, height, width))
            return Result(PLANES, 3, self._size)
        self._file.input = value_info(PIXELS, UINT8, ("N", height, width, 3))
        scale, shift = self._in_order(*self._preprocessing.scale_and_shift())
        node = self._file.add_node("Transpose", (PIXELS,), "planes", perm=(0, 3, 1, 2))
        node = self._file.add_node("Cast", (node,), "levels", to=FLOAT)
        node = self._file.add_node("Mul", (node, self._constant("scale", scale.reshape(1, 3, 1, 1))), "scaled")
        node = self._file.add_node("Add", (node, self._constant("shift", shift.reshape(1, 3, 1, 1))), "normalised")
        return Result(node, 3, self._size)

    def _in_order(self, *values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values of the network's channels in the order of the pixels': a network that takes blue first gets its first
        kernel turned round in the place of each image.
        """
        is_bgr = self._preprocessing is not None and self._preprocessing.is_bgr
        return [each[::-1] if is_bgr else each for each in values]

    def _add(self, step: Step, name: str) -> None:
        sources = [self._results[each] for each in step.inputs]
        self._results[step.name] = self._result(step, sources, name)

    def _result(self, step: Step, sources: list[Result], name: str) -> Result:
        source, file = sources[0], self._file
        if step.kind == "sum":
            self._check_same(step, *sources)
            return source.as_(file.add_node("Add", (source.name, sources[1].name), name))
        if step.kind == "flatten":
            return Result(
                file.add_node("Flatten", (source.name,), name, axis=1), source.channels * prod(source.size), ()
            )
        if step.kind == "convolution":
            return self._convolution(step, source, name)
        if step.kind == "linear":
            return self._linear(step, source, name)
        if step.kind == "batch_norm":
            return self._batch_norm(step, source, name)
        if step.kind == "layer_norm":
            tensors = (self._stored(step, "weight"), self._stored(step, "bias"))
            assert step.layer.value is not None
            node = file.add_node("LayerNormalization", (source.name, *tensors), name, axis=1, epsilon=step.layer.value)
            return source.as_(node)
        if step.kind in ("max_pool", "average_pool"):
            return pool(file, step.layer, pool_zeros(file, step, source), name)
        if step.kind in ("adaptive_max_pool", "adaptive_average_pool"):
            return adaptive_pool(file, step.layer, source, name)
        return source.as_(activation(file, step.layer, source.name, name))

    def _convolution(self, step: Step, source: Result, name: str) -> Result:
        layer, shape = step.layer, dict(step.shapes)["weight"]
        self._check_takes(step, source.channels, shape[1] * step.groups)
        assert layer.stride is not None
        assert layer.padding is not None
        assert layer.dilation is not None
        zeros = window(step, source.size, shape[2:], layer.stride, layer.padding, layer.dilation)
        is_first = step.inputs[0] == INPUT
        node = self._file.add_node(
            "Conv",
            (source.name, *self._folded_tensors(step, is_first)),
            name,
            kernel_shape=shape[2:],
            strides=layer.stride,
            pads=zeros.pads,
            dilations=layer.dilation,
            group=step.groups,
        )
        return Result(node, shape[0], zeros.size)

    def _linear(self, step: Step, source: Result, name: str) -> Result:
        outputs, inputs = dict(step.shapes)["weight"]
        self._check_takes(step, source.channels, inputs)
        node = self._file.add_node("Gemm", (source.name, *self._folded_tensors(step)), name, transB=1)
        return Result(node, outputs, ())

    def _folded_tensors(self, step: Step, is_first: bool = False) -> tuple[str, ...]:
        """Weight and bias with the normalisation that follows, computed in float64 and rounded once."""
        shape, norm = dict(step.shapes)["weight"], self._folded.get(step.name)
        has_bias = step.shape("bias") is not None
        affine = _Affine.of(norm, self._weights) if norm is not None else None

        def weight() -> NDArray[np.float32]:
            values = self._weights[f"{step.name}.weight"]
            if affine is not None:
                values = values * affine.scale.reshape(-1, *(1,) * (len(shape) - 1))
            return np.asarray(self._turned(values) if is_first else values, np.float32)

        def bias() -> NDArray[np.float32]:
            values = self._weights[f"{step.name}.bias"] if has_bias else np.zeros(shape[0])
            if affine is not None:
                values = values * affine.scale + affine.shift
            return np.asarray(values, np.float32)

        tensors = [Tensor(f"{step.name}.weight", shape, weight)]
        if has_bias or affine is not None:
            tensors.append(Tensor(f"{step.name}.bias", shape[:1], bias))
        return tuple(self._file.add_tensor(each) for each in tensors)

    def _turned(self, kernel: NDArray[Any]) -> NDArray[Any]:
        is_bgr = self._preprocessing is not None and self._preprocessing.is_bgr
        return kernel[:, ::-1] if is_bgr else kernel

    def _batch_norm(self, step: Step, source: Result, name: str) -> Result:
        (channels,) = dict(step.shapes)["weight"]
        self._check_takes(step, source.channels, channels)
        if any(norm.name == step.name for norm in self._folded.values()):
            return source
        leaves = ("weight", "bias", "running_mean", "running_var")
        tensors = tuple(self._stored(step, leaf) for leaf in leaves)
        assert step.layer.value is not None
        node = self._file.add_node("BatchNormalization", (source.name, *tensors), name, epsilon=step.layer.value)
        return source.as_(node)

    def _stored(self, step: Step, leaf: str) -> str:
        name = f"{step.name}.{leaf}"
        return self._file.add_tensor(Tensor(name, dict(step.shapes)[leaf], lambda: self._weights[name]))

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        return self._file.add_tensor(Tensor(name, values.shape, lambda: values))

    def _check_takes(self, step: Step, found: int, expected: int) -> None:
        if found != expected:
            raise CheckpointError(
                f"The checkpoint's {step.name} takes {expected:,} numbers, and the layer before it gives {found:,} for "
                f"images of {self._size[0]}×{self._size[1]}."
            )

    def _check_same(self, step: Step, one: Result, other: Result) -> None:
        if (one.channels, one.size) != (other.channels, other.size):
            shapes = " and ".join("×".join(map(str, (each.channels, *each.size))) for each in (one, other))
            raise CheckpointError(
                f"The checkpoint's {step.name.rpartition('.')[0]} has two branches of different shapes, {shapes}, for "
                f"images of {self._size[0]}×{self._size[1]}."
            )
