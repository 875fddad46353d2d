"""The float32 graph prepared for quantization, and its quantizable layers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..artifacts.exporting import described, export_graph
from ..backends.onnx import OnnxBackend
from ..backends.onnx_sessions import session_options
from ..checkpoints import Checkpoint, Graph
from ..errors import QuantizationError
from ..networks import is_described

LAYERS = ("Conv", "Gemm", "MatMul")
# Operators that are quantized between the layers, so that values stay in 8 bits from one layer to the next.
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Relu", "Reshape")
OPERATORS = (*LAYERS, *BETWEEN)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float32 network: the graph to quantize and the graph to compare with."""

    model: Any
    """`onnx.ModelProto`: shapes inferred, constants folded, every node with a name."""
    graph: Graph
    """The same network, unprepared."""
    layers: tuple[str, ...]
    """Names of the convolutions and matrix products with constant weights, in the graph's order."""
    before: tuple[str, ...]
    """Nodes before the first layer, which normalise. Quantizing them would cost time and accuracy without a gain."""


def float_graph(checkpoint: Checkpoint, threads: int) -> Graph:
    """The network of `checkpoint` in float32. Raises `QuantizationError` for a graph that cannot be quantized."""
    graph = checkpoint.graph
    if graph is None:
        if not is_described(checkpoint.architecture):
            import torch

            torch.set_num_threads(threads)
        return described(checkpoint, export_graph(checkpoint))
    if graph.computes_in == "int8":
        raise QuantizationError(f"{checkpoint.source} is quantized already. Name the float32 checkpoint it is made of.")
    if graph.dtype == "float16" or graph.batch_size is not None:
        what = "is in float16" if graph.dtype == "float16" else f"answers {graph.batch_size} images at a time"
        raise QuantizationError(
            f"{checkpoint.source} {what}, and only float32 graphs with a free batch axis are quantized. Export it so, "
            f"or name the checkpoint that it was made of."
        )
    return graph


def prepare(graph: Graph, size: tuple[int, int], threads: int) -> Prepared:
    """`size`: height and width of the input. Raises `QuantizationError` if no layer can be quantized."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load_model_from_string(graph.model)
    del model.graph.value_info[:]
    # For one image all shapes are known, so that shape computations are folded; then the batch axis is free again.
    _set_input(model, graph, size, 1)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath)
    del model.graph.value_info[:]
    _set_input(model, graph, size, None)
    model = onnx.shape_inference.infer_shapes(model)
    add_pre_process_metadata(model)
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}:{node.name or node.op_type}"
    layers = _layers(model)
    if not layers:
        raise QuantizationError("The network has no convolution or matrix product with constant weights to quantize.")
    names = [node.name for node in model.graph.node]
    before = names[: names.index(layers[0])]
    _widen(model, frozenset(before))
    return Prepared(model, graph, layers, tuple(before))


def backend_of(graph: Graph, checkpoint: Checkpoint, threads: int) -> OnnxBackend:
    """`graph` in the backend that serves it, in place of the network of `checkpoint`."""
    from ..backends import BackendOptions

    return OnnxBackend(graph, checkpoint.preprocessing, checkpoint.activation, BackendOptions(threads=threads))


def _set_input(model: Any, graph: Graph, size: tuple[int, int], count: int | None) -> None:
    """Declare the input for `count` images, or for any number if None."""
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        if not sides:
            continue
        if count is None:
            sides[0].dim_param = "N"
        else:
            sides[0].dim_value = count
        if value.name == graph.input_name:
            first = 2 if graph.layout == "nchw" else 1
            for side, length in zip(sides[first : first + 2], size, strict=True):
                side.dim_value = length


def _widen(model: Any, before: frozenset[str]) -> None:
    """Expand the constants of normalisation to the size of the image.

    Broadcasting three numbers over all pixels is slower: 3% of the time of a ResNet-50 in 8 bits.
    """
    import numpy as np
    import onnx

    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in model.graph.value_info
    }
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        shape = shapes.get(node.output[0], [])
        if node.name not in before or node.op_type not in ("Add", "Div", "Mul", "Sub") or len(shape) != 4:
            continue
        for at, name in enumerate(node.input):
            if name in constants and prod(constants[name].dims) == 3 and all(shape[1:]):
                values = onnx.numpy_helper.to_array(constants[name])
                wide = np.ascontiguousarray(np.broadcast_to(values, (1, *shape[1:])))
                node.input[at] = f"{name}:wide:{node.name}"
                model.graph.initializer.append(onnx.numpy_helper.from_array(wide, node.input[at]))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _layers(model: Any) -> tuple[str, ...]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in constants
    )
