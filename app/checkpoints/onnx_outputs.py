"""The output of an ONNX graph that has the scores of the classes."""

from __future__ import annotations

from math import prod
from typing import Any

from .onnx_graph import SHAPERS, Graph
from .onnx_refusal import Refused
from .onnx_sizes import Sizes

MAX_OUTPUTS = 64
SETTING = "RESNET_ONNX_OUTPUT"
_FLOATS = (1, 10, 11)
_LAYERS = frozenset({"Gemm", "MatMul", "Conv", "QLinearMatMul", "QLinearConv", "QGemm", "MatMulInteger", "ConvInteger"})
_FUSED = frozenset({"FusedGemm", "FusedMatMul", "FusedConv", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})


def choose_output(model: Any, sizes: Sizes, named: str | None) -> tuple[str, str]:
    """The name of the output with the scores, and a note if there are others.

    `named` is the setting's value. Raises `Refused` if it names no output, or if it is None and several could be it.
    """
    outputs = list(model.graph.output)
    if not outputs or len(outputs) > MAX_OUTPUTS:
        raise Refused(f"it has {len(outputs)} outputs where up to {MAX_OUTPUTS} were expected; export it with one")
    shapes = {value.name: sizes.shapes.get(value.name) for value in outputs}
    listed = ", ".join(f"{name[:80]} {_shown(shapes[name])}" for name in shapes)
    if named is not None:
        if named not in shapes:
            raise Refused(f"{SETTING} is {named}, and it has no output of that name: {listed}; name one of them")
        return named, ""
    if len(outputs) == 1:
        return str(outputs[0].name), ""
    floats = [value.name for value in outputs if value.type.tensor_type.elem_type in _FLOATS]
    scores = [name for name in floats if _is_row(shapes[name])]
    chosen = scores[0] if len(scores) == 1 else _last(Graph(model), scores, shapes)
    if chosen is None:
        raise Refused(
            f"it has {len(outputs)} outputs, and nothing tells which has the scores of the classes: {listed}; set "
            f"{SETTING} to the name of that one"
        )
    others = ", ".join(name[:80] for name in shapes if name != chosen)
    return chosen, f"of its outputs {chosen[:80]} is taken for the scores of the classes, and not {others}"


def _is_row(shape: tuple[int, ...] | None) -> bool:
    """Whether `shape` is a row of numbers for each image."""
    return shape is not None and len(shape) >= 2 and prod(shape[1:]) == max(shape[1:]) > 0


def _shown(shape: tuple[int, ...] | None) -> str:
    return (
        "of an unknown shape" if shape is None else f"({', '.join(['N', *(str(side or '?') for side in shape[1:])])})"
    )


def _last(graph: Graph, names: list[str], shapes: dict[str, tuple[int, ...] | None]) -> str | None:
    """The output computed from all others: from features through a layer, or from as many logits."""
    sources = {name: _source(graph, name) for name in names}
    for name in names:
        needed = graph.needs(name)
        others = [each for each in names if each != name]
        if all(sources[each] in needed and _leads(graph, sources[each], name, shapes, each) for each in others):
            return name
    return None


def _source(graph: Graph, name: str) -> str:
    """The value that `name` is a copy of, as outputs often are; or `name`."""
    for _ in range(len(graph.model.graph.node)):
        node = graph.made_by.get(name)
        if node is None or not node.input or node.op_type not in SHAPERS:
            break
        name = node.input[0]
    return name


def _leads(graph: Graph, source: str, target: str, shapes: dict[str, tuple[int, ...] | None], other: str) -> bool:
    """Whether `target` is computed from `source` as scores from features, or as probabilities from logits."""
    here, there = shapes[target], shapes[other]
    if here is not None and there is not None and prod(here[1:]) == prod(there[1:]):
        return True
    between = graph.needs(target) - graph.needs(source)
    operators = {graph.made_by[name].op_type for name in between if name in graph.made_by}
    return bool(operators & (_LAYERS | _FUSED))
