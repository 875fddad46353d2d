"""Memory and operations of one run of an ONNX graph, estimated from shapes before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .onnx_operators import in_onnx_alone
from .onnx_refusal import Refused
from .onnx_weights import is_told_by_place

MAX_SHAPE_NUMBERS = 1024
# ConvNeXt-L for images of 384 pixels takes 2.0e11, a ResNet-50 for 224 pixels 8.2e9.
MAX_OPERATIONS = 2.5e11
# In addition to the weights' size: a ResNet-50 takes 201 MB for an image of 1,024 pixels, and 10 MB for one of 224.
MAX_VALUE_BYTES = 80 << 20
# The cost of copying an element or applying a simple function to it, in operations of a convolution.
_ELEMENT_OPERATIONS = 16
_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
# The index of an operator's weights among its inputs.
_PRODUCTS = {
    **{"Conv": 1, "ConvInteger": 1, "QLinearConv": 3},
    **{"Gemm": 1, "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3},
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one run."""

    shapes: dict[str, tuple[int, ...]]
    """The known shapes of values; 0 for an unknown side."""
    operations: float
    value_bytes: int
    """The most bytes that values take at the same time."""
    largest: str
    """The largest value, for an error text."""


def without_weights(model: Any) -> Any:
    """A copy in which large weights are inputs: shapes depend only on small constants."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    known = {value.name for value in bare.graph.input}
    for tensor in model.graph.initializer:
        if not is_told_by_place(tensor) and prod(tensor.dims) <= MAX_SHAPE_NUMBERS:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in known:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return bare


def measure(model: Any, input_name: str, shape: tuple[int, ...]) -> Sizes:
    """The sizes of a run with an input of `shape`."""
    import onnx

    bare = without_weights(model)
    in_onnx_alone(bare)
    for value in bare.graph.input:
        if value.name == input_name:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(input_name, kind, shape))
    for value in bare.graph.output:
        # The output is declared for the batch size of the export.
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=False, strict_mode=False, data_prop=True)
    shapes, sizes = {}, {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(max(0, axis.dim_value) for axis in kind.shape.dim)
            sizes[value.name] = prod(max(1, side) for side in shapes[value.name]) * _BYTES.get(kind.elem_type, 4)
    shapes.update((tensor.name, tuple(tensor.dims)) for tensor in model.graph.initializer)
    stored = {tensor.name for tensor in model.graph.initializer}
    live = _most_at_once(bare.graph, {name: size for name, size in sizes.items() if name not in stored})
    made = {name for node in bare.graph.node for name in node.output}
    largest = max(made & sizes.keys(), key=sizes.__getitem__, default="")
    return Sizes(
        shapes=shapes,
        operations=sum(_operations(node, shapes) for node in bare.graph.node),
        value_bytes=live,
        largest=f"{largest[:80]} has the shape {list(shapes.get(largest, ()))}",
    )


def most_value_bytes(stored_bytes: int) -> int:
    """The limit of values in a run of a file of `stored_bytes`."""
    return stored_bytes + MAX_VALUE_BYTES


def check_sizes(sizes: Sizes, stored_bytes: int) -> None:
    """Raises `Refused` if a run would take too much for a file of `stored_bytes`."""
    if sizes.value_bytes > most_value_bytes(stored_bytes):
        raise Refused(
            f"its values take {sizes.value_bytes / 1e6:,.0f} MB at a time for the input that it was exported for, over "
            f"its size and {MAX_VALUE_BYTES / 1e6:.0f} MB ({sizes.largest}); export it for smaller or fewer images"
        )
    if sizes.operations > MAX_OPERATIONS:
        raise Refused(
            f"one run takes {sizes.operations / 1e9:,.0f} billion operations, over the limit of "
            f"{MAX_OPERATIONS / 1e9:,.0f}; export it for smaller or fewer images"
        )


def _most_at_once(graph: Any, sizes: dict[str, int]) -> int:
    """The most bytes, over the run, of values that were just computed or are still to be read."""
    last = {name: number for number, node in enumerate(graph.node) for name in node.input}
    outputs = {value.name for value in graph.output}
    held = {value.name: sizes.get(value.name, 0) for value in graph.input}
    ending: dict[int, list[str]] = {}
    for name, number in last.items():
        if name not in outputs:
            ending.setdefault(number, []).append(name)
    now = most = sum(held.values())
    for number, node in enumerate(graph.node):
        for name in node.output:
            held[name] = sizes.get(name, 0)
            now += held[name]
        most = max(most, now)
        for name in ending.get(number, []):
            now -= held.pop(name, 0)
        for name in node.output:
            if name not in last and name not in outputs:
                now -= held.pop(name, 0)
    return most


def _operations(node: Any, shapes: dict[str, tuple[int, ...]]) -> float:
    made = sum(prod(shapes.get(name, ())) for name in node.output)
    at = _PRODUCTS.get(node.op_type)
    if at is not None and len(node.input) > at and node.output:
        weights, inputs = shapes.get(node.input[at], ()), shapes.get(node.input[0], ())
        if "Conv" in node.op_type:
            return 2.0 * made * prod(weights[1:])
        return 2.0 * made * (inputs[-1] if inputs else 1)
    taken = sum(prod(shapes.get(name, ())) for name in node.input)
    window = next((prod(each.ints) for each in node.attribute if each.name == "kernel_shape"), 1)
    return float(_ELEMENT_OPERATIONS * (made + taken) + made * window)
