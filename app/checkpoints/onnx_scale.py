"""The input scale of an ONNX graph: fractions, levels of 0 to 255, or normalised values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .onnx_graph import ROUNDERS, Graph

_MOST_NODES = 32
# Plausible means and deviations of photos, in fractions of the range.
_MEANS, _DEVIATIONS = (0.2, 0.8), (0.1, 1.1)
_LEVELS = 255


@dataclass(frozen=True, slots=True)
class Scale:
    takes: str | None
    """"unit" (0 to 1), "levels" (0 to 255), or None for normalised values."""
    warning: str = ""


def find_scale(model: Any, input_name: str, dtype: str) -> Scale:
    """The scale by the mean and deviation, constants of one or three numbers, that are applied to the input first.

    An integer input is always levels.
    """
    import numpy as np

    graph, name = Graph(model), input_name
    slope, shift, has_any = np.ones(1), np.zeros(1), False
    for _ in range(_MOST_NODES):
        readers = [node for node in model.graph.node if name in node.input]
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op_type == "BatchNormalization":
            scale = _by_statistics(graph, node)
            if scale is not None and not has_any:
                return Scale("levels") if dtype == "uint8" else scale
            break
        changed = _affine(graph, node, name, slope, shift)
        if changed is not None:
            slope, shift = changed
            has_any = True
        elif not _is_passed(graph, node, name):
            break
        name = node.output[0]
    if dtype == "uint8":
        return Scale("levels")
    if not has_any or (np.allclose(slope, 1) and np.allclose(shift, 0)):
        return Scale(None)
    if not slope.all():
        return _unclear(slope, shift)
    # The input `mean` becomes 0, and an input `deviation` away from it becomes ±1.
    mean, deviation = -shift / slope, 1 / np.abs(slope)
    for takes, top in (("levels", _LEVELS), ("unit", 1)):
        if _is_mean(mean / top) and _has_deviation(deviation / top, mean / top):
            return Scale(takes)
    # Only means, as in Caffe's networks: for levels they are over 1, and for fractions the slope is 255.
    if _is_mean(mean / _LEVELS) and np.allclose(np.abs(slope), 1, rtol=0.2):
        return Scale("levels")
    if _is_mean(mean) and (np.abs(slope) >= 1).all():
        return Scale("unit")
    if np.allclose(shift, 0) and (deviation >= 20).all():
        return Scale("levels")
    if np.allclose(shift, 0) and (np.allclose(slope, _LEVELS, rtol=0.01) or ((slope > 2) & (slope < 10)).all()):
        return Scale("unit")
    return _unclear(slope, shift)


def _is_mean(mean: Any) -> bool:
    return bool(((mean >= _MEANS[0]) & (mean <= _MEANS[1])).all())


def _has_deviation(deviation: Any, mean: Any) -> bool:
    return bool(((deviation >= _DEVIATIONS[0]) & (deviation <= _DEVIATIONS[1])).all())


def _unclear(slope: Any, shift: Any) -> Scale:
    shown = f"times {', '.join(f'{each:.4g}' for each in slope)}, plus {', '.join(f'{each:.4g}' for each in shift)}"
    return Scale(
        None,
        f"it changes its input ({shown}) in a way that does not tell whether it takes levels, fractions or normalised "
        f"values: normalised ones are assumed. Set RESNET_PREPROCESSING to what it was trained with",
    )


def _by_statistics(graph: Graph, node: Any) -> Scale | None:
    """The scale of the training images, from the statistics of a batch normalisation on the image itself."""
    import numpy as np

    statistics = [graph.value(name) for name in node.input[3:5]]
    if any(each is None or each.size != 3 for each in statistics) or len(statistics) != 2:
        return None
    mean, deviation = statistics[0], np.sqrt(np.maximum(statistics[1], 0))
    for takes, top in (("unit", 1), ("levels", _LEVELS)):
        if _is_mean(mean / top) and _has_deviation(deviation / top, mean / top):
            return Scale(takes)
    return Scale(None)


def _affine(graph: Graph, node: Any, name: str, slope: Any, shift: Any) -> tuple[Any, Any] | None:
    """Slope and shift of each channel after `node`; None if it is not arithmetic with a constant."""
    import numpy as np

    if node.op_type not in ("Mul", "Div", "Sub", "Add") or len(node.input) != 2 or node.input[0] == node.input[1]:
        return None
    is_first = node.input[0] == name
    constant = graph.value(node.input[1] if is_first else node.input[0])
    if constant is None or constant.size not in (1, 3):
        return None
    values = constant.astype(np.float64).reshape(-1)
    if node.op_type == "Mul":
        return slope * values, shift * values
    if node.op_type == "Add":
        return slope + 0 * values, shift + values
    if node.op_type == "Sub":
        return (slope + 0 * values, shift - values) if is_first else (-slope + 0 * values, values - shift)
    return (slope / values, shift / values) if is_first and values.all() else None


def _is_passed(graph: Graph, node: Any, name: str) -> bool:
    """Whether the node keeps the image's values, or only swaps its channels."""
    if node.op_type in {"Cast", "Transpose", "Identity", "Reshape"} | ROUNDERS:
        return bool(node.input[0] == name)
    if node.op_type == "Gather":
        indices = graph.value(node.input[1])
        return indices is not None and sorted(indices.reshape(-1).tolist()) == [0, 1, 2]
    if node.op_type == "Slice" and len(node.input) == 5:
        steps = graph.value(node.input[4])
        return steps is not None and steps.tolist() == [-1]
    return False
