"""Finds a classifier graph's global average pool: its input are the feature maps, its output the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checkpoints.onnx_graph import Graph

_NCHWC = "com.microsoft.nchwc"
_MICROSOFT = "com.microsoft"
_POOLS = frozenset(
    {
        *("GlobalAveragePool", "AveragePool", "ReduceMean"),
        *("QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearReduceMean"),
    }
)
# In the names of all operators with weights: Conv, QLinearConv, Gemm, FusedGemm, MatMul, MatMulInteger, …
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Pooling:
    """The names of two float values of a graph, some of them from operators that are yet to be added to it."""

    maps: str
    pooled: str
    added: tuple[Any, ...]
    """onnx.NodeProto, in order."""


def find_pooling(model: Any, output: str) -> Pooling | None:
    """The last pool that all of `output` is computed through, with a weighted layer behind it.

    A pool within the network (squeeze-and-excitation) does not count: other paths lead around it. Whether the pool
    covers the whole map is for the caller to see from the values: shapes are not computed here.
    `model` is an onnx.ModelProto.
    """
    graph = Graph(model)
    image = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    needed = graph.needs(output)
    for node in reversed(model.graph.node):
        if node.op_type not in _POOLS or node.output[0] not in needed:
            continue
        # What the output is made of without the pool's part in it.
        beside = _needs_without(graph, output, node.output[0])
        if beside & image:
            continue
        behind = {graph.made_by[name].op_type for name in beside if name in graph.made_by}
        if not any(kind in operator for operator in behind for kind in _WEIGHTED):
            return None
        return _pooling(graph, node)
    return None


def _needs_without(graph: Graph, name: str, end: str) -> set[str]:
    needed, waiting = {name}, [name]
    while waiting:
        node = graph.made_by.get(waiting.pop())
        if node is not None:
            new = {each for each in node.input if each and each != end} - needed
            needed |= new
            waiting += new
    return needed


def _pooling(graph: Graph, node: Any) -> Pooling | None:
    import onnx

    maps, pooled = node.input[0], node.output[0]
    if node.domain == _NCHWC:
        # ONNX Runtime's layout for the CPU's vectors, in blocks of channels: its own operator brings it back. After the
        # pool there is one already, which knows the number of channels.
        back = [each for each in graph.model.graph.node if each.op_type == "ReorderOutput" and pooled in each.input]
        if not back:
            return None
        channels = next(each.i for each in back[0].attribute if each.name == "channels")
        reorder = onnx.helper.make_node(
            "ReorderOutput", [maps], ["feature_maps"], domain=_NCHWC, channels=channels, channels_last=0
        )
        return Pooling("feature_maps", back[0].output[0], (reorder,))
    if node.domain == _MICROSOFT:
        # In 8 bits: value, scale and zero point, then those of the output.
        _, scale, zero, out_scale, out_zero = node.input[:5]
        added = (
            onnx.helper.make_node("DequantizeLinear", [maps, scale, zero], ["feature_maps"]),
            onnx.helper.make_node("DequantizeLinear", [pooled, out_scale, out_zero], ["features"]),
        )
        return Pooling("feature_maps", "features", added)
    return Pooling(maps, pooled, ())
