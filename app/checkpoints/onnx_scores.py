"""Whether an ONNX graph answers with scores or with probabilities: by its last operators and by a trial run.

Neither is sufficient alone. A softmax may be composed of other operators, rounded to 8 bits or over another axis, and
numbers between 0 and 1 need not be probabilities. If the two disagree, the graph is refused, or there is a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .onnx_graph import ROUNDERS, SHAPERS, Graph
from .onnx_refusal import Refused

_SOFTMAXES = frozenset({"Softmax", "QLinearSoftmax"})
_SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid", "QLinearSigmoid"})
# With constants, these are elementwise functions of one value.
_AFFINE = frozenset({"Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Reciprocal", "Sub"})
# Parts of composed sigmoids: 1 / (1 + exp(-x)), (1 + tanh(x / 2)) / 2, a line clipped to 0 and 1.
_BOUNDING = _SIGMOIDS | {"Clip", "Exp", "Min", "Softmax", "Tanh"}
_WRITTEN_OUT = _AFFINE | SHAPERS | ROUNDERS | _BOUNDING | {"Pow", "Sqrt", "Sum", "Concat", "ReduceSum", "ReduceMax"}
_MOST_WRITTEN_OUT = 32


@dataclass(frozen=True, slots=True)
class Ending:
    """The last function of a graph."""

    operator: str
    """The softmax, LogSoftmax or sigmoid operator; empty for any other."""
    is_changed: bool
    """Whether later operators change its numbers."""
    before_rounding: str
    """The value with the output's numbers before rounding to 8 bits; the output itself if it is not rounded."""
    quantum: float
    """The step between two adjacent numbers of that value if it is rounded; else 0."""
    could_bound: bool
    """Whether the last operators could bound numbers to 0 and 1, as a composed sigmoid does."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The activation that remains to be applied to the output, or None if the graph does not show it."""

    activation: str | None
    note: str = ""
    warning: str = ""


def find_ending(model: Any) -> Ending:
    graph, output = Graph(model), model.graph.output[0].name
    names = list(graph.same_numbers(output))
    rounders = [graph.made_by[name].op_type for name in names[:-1] if graph.made_by[name].op_type in ROUNDERS]
    operator, is_changed = _last_function(graph, names[-1])
    before_rounding = names[-1] if rounders and rounders[-1] == "QuantizeLinear" else output
    return Ending(
        operator=operator,
        is_changed=is_changed,
        before_rounding=before_rounding,
        quantum=_quantum(graph, names) if before_rounding == output else 0.0,
        could_bound=_could_bound(graph, names[-1]),
    )


def read_scores(ending: Ending, rows: Any, tolerance: float, louder: Callable[[], Any | None], classes: int) -> Reading:
    """Read the meaning of the scores from the graph's ending and its results.

    `rows` are the results for the trial images, (N, classes), before rounding if they are available. `louder` returns
    the results for images of much higher contrast, or None if there are none. Raises `Refused` if the ending and the
    results contradict each other.
    """
    import numpy as np

    slack = tolerance + ending.quantum
    sums = rows.sum(axis=1, dtype=np.float64)
    sums_slack = tolerance + classes * ending.quantum / 2
    is_unit = bool(rows.min() >= -slack and rows.max() <= 1 + slack)
    if ending.operator in _SOFTMAXES and classes == 1:
        raise Refused(
            "it ends in a softmax over its one output, which is 1 for every image; export it with a sigmoid there, or "
            "with nothing"
        )
    if classes > 1 and is_unit and sums_slack < 0.5 and np.abs(sums - 1).max() <= sums_slack:
        is_known = ending.operator in _SOFTMAXES
        return Reading("none", "" if is_known else "its scores are probabilities already, as the trial images show")
    if ending.operator in _SOFTMAXES:
        if is_unit and np.abs(sums - 1).max() <= sums_slack:
            return Reading("none")
        raise Refused(
            f"it ends in a softmax, and yet its scores for an image do not add up to 1 but to {sums[0]:.4g}: the "
            f"softmax is over another axis than the classes, or changed after it; export it without the softmax"
        )
    if ending.operator == "LogSoftmax":
        if np.abs(np.exp(rows.astype(np.float64)).sum(axis=1) - 1).max() > max(sums_slack, 0.05):
            raise Refused(
                "it ends in a logarithm of a softmax that is over another axis than the classes, or changed after it; "
                "export it without that"
            )
        return Reading("softmax")
    if ending.operator in _SIGMOIDS:
        if not is_unit or ending.is_changed:
            raise Refused(
                "its scores are changed after a sigmoid and are no probabilities any more; export it with nothing "
                "after the sigmoid"
            )
        return Reading("none", "it ends in a sigmoid, so that each probability stands alone and they need not add up")
    if classes > 1 and rows.min() >= 0 and sums.min() > tolerance and np.ptp(sums) <= 1e-3 * sums.max():
        raise Refused(
            f"its scores add up to {sums[0]:.4g} for every image, as probabilities do that were changed after their "
            f"softmax, or that are of several softmaxes; export it with nothing after the last dense layer"
        )
    if not is_unit:
        return Reading(None)
    if ending.could_bound:
        return Reading(
            "none",
            "its scores are kept between 0 and 1, as by a sigmoid: each is taken for a probability that stands alone",
        )
    loud = louder()
    if loud is not None and (loud.min() < -slack or loud.max() > 1 + slack):
        return Reading(None)
    return Reading(
        None,
        warning="its scores are between 0 and 1 for every trial image, though nothing in it makes probabilities. They "
        "are taken for scores; if they are probabilities, set RESNET_ACTIVATION=none",
    )


def _last_function(graph: Graph, name: str) -> tuple[str, bool]:
    """The last softmax or sigmoid before any arithmetic with constants, and whether that changes its numbers.

    `1 - p` does not count as a change: it is a probability too.
    """
    slope, shift = 1.0, 0.0
    for _ in range(_MOST_WRITTEN_OUT):
        node = graph.made_by.get(name)
        if node is None:
            break
        is_changed = abs(abs(slope) - 1) > 1e-6 or abs(shift - (1 if slope < 0 else 0)) > 1e-3
        if node.op_type in _SOFTMAXES | _SIGMOIDS | {"LogSoftmax"}:
            return str(node.op_type), is_changed
        if node.op_type == "Log" and _operator(graph, node.input[0]) in _SOFTMAXES:
            return "LogSoftmax", is_changed
        variable = [each for each in node.input if each and each not in graph.constants]
        if node.op_type in _AFFINE and len(variable) == 1:
            factor, term = _line(graph, node, variable[0])
            slope, shift = slope * factor, slope * term + shift
        elif node.op_type not in SHAPERS | ROUNDERS:
            break
        name = variable[0] if variable else ""
    return "", False


def _line(graph: Graph, node: Any, name: str) -> tuple[float, float]:
    """The factor and the summand that an operator with a constant applies to `name`; 0 and 0 for other operators."""
    if node.op_type in ("Clip", "Max", "Min"):
        return 1.0, 0.0
    if node.op_type == "Neg":
        return -1.0, 0.0
    is_first = node.input[0] == name
    constant = graph.value(node.input[1 if is_first else 0]) if len(node.input) == 2 else None
    if constant is None or constant.size != 1 or (node.op_type == "Div" and not (is_first and constant.any())):
        return 0.0, 0.0
    value = float(constant.reshape(-1)[0])
    if node.op_type in ("Mul", "Div"):
        return (value, 0.0) if node.op_type == "Mul" else (1 / value, 0.0)
    if node.op_type == "Add" or is_first:
        return 1.0, value if node.op_type == "Add" else -value
    return -1.0, value


def _operator(graph: Graph, name: str) -> str:
    return str(graph.made_by[name].op_type) if name in graph.made_by else ""


def _could_bound(graph: Graph, name: str) -> bool:
    waiting, seen = [name], 0
    while waiting and seen < _MOST_WRITTEN_OUT:
        node = graph.made_by.get(waiting.pop())
        if node is None or node.op_type not in _WRITTEN_OUT:
            continue
        if node.op_type in _BOUNDING:
            return True
        seen += 1
        waiting += [each for each in node.input if each]
    return False


def _quantum(graph: Graph, names: list[str]) -> float:
    import numpy as np

    for name in names:
        node = graph.made_by.get(name)
        if node is not None and node.op_type == "DequantizeLinear" and len(node.input) > 1:
            scale = graph.value(node.input[1])
            return 0.0 if scale is None else float(np.abs(scale).max())
    return 0.0
