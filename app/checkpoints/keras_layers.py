"""Facts of single layers of a Keras graph: activations, padding, epsilons, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..layers import LayerKind
from .keras_graph import KerasGraph, Node, Tensor

Size = tuple[int, int]
Pads = tuple[int, int, int, int]
"""Padding in rows above and below, and columns left and right."""

# These have no effect at inference.
_INERT = frozenset(
    {
        *("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
        *("Identity", "tf.identity", "tf.stop_gradient", "StopGradient"),
    }
)
_RANDOM = ("Random", "AutoContrast", "RandAugment", "AugMix", "MixUp", "CutMix")

# Activations by Keras's names (keras/activations/activations.py).
_ACTIVATIONS: Mapping[str, tuple[str, float | None]] = {
    "linear": ("linear", None),
    "relu": ("relu", None),
    "relu6": ("relu6", None),
    "leaky_relu": ("leaky_relu", 0.2),
    "elu": ("elu", 1.0),
    "selu": ("selu", None),
    "gelu": ("gelu", None),
    "silu": ("silu", None),
    "swish": ("silu", None),
    "mish": ("mish", None),
    "hard_silu": ("hardswish", None),
    "hard_swish": ("hardswish", None),
    "softplus": ("softplus", None),
    "softsign": ("softsign", None),
    "tanh": ("tanh", None),
    "sigmoid": ("sigmoid", None),
    "softmax": ("softmax", None),
    # Its softmax gives the probabilities that it is the logarithm of.
    "log_softmax": ("log_softmax", None),
}
# Operations of Keras 3 and functions of TensorFlow in Keras 2.
_OPERATIONS: Mapping[str, str] = {
    **{"Relu": "relu", "Relu6": "relu6", "Selu": "selu", "Silu": "silu", "Mish": "mish", "HardSilu": "hard_silu"},
    **{"Softplus": "softplus", "Softsign": "softsign", "Tanh": "tanh", "Sigmoid": "sigmoid"},
    **{"tf.nn.relu": "relu", "tf.nn.relu6": "relu6", "tf.nn.selu": "selu", "tf.nn.silu": "silu", "tf.nn.elu": "elu"},
    **{"tf.nn.softplus": "softplus", "tf.nn.softsign": "softsign", "tf.nn.tanh": "tanh", "tf.math.tanh": "tanh"},
    **{"tf.nn.sigmoid": "sigmoid", "tf.math.sigmoid": "sigmoid", "tf.nn.swish": "silu"},
}


@dataclass(frozen=True, slots=True)
class Activated:
    """An activation as a layer states it."""

    kind: str
    """A `LayerKind`; or linear, softmax, log_softmax."""
    value: float | None = None

    @property
    def layer_kind(self) -> LayerKind:
        return self.kind  # type: ignore[return-value]

    @property
    def keeps_zero_lowest(self) -> bool:
        """Whether none of its results is below zero."""
        return self.kind in ("relu", "relu6", "sigmoid", "softmax", "softplus")


def is_inert(node: Node) -> bool:
    if node.keywords.get("training") is True and node.kind.endswith("Dropout"):
        return False
    # A RandomCrop crops the centre at inference.
    return node.kind in _INERT or (node.kind.startswith(_RANDOM) and node.kind != "RandomCrop")


def behind_inert(tensor: Tensor) -> Tensor:
    """The tensor before any layers without effect."""
    while (is_inert(tensor.node) or _is_linear(tensor.node)) and len(tensor.node.inputs) == 1:
        tensor = tensor.node.inputs[0]
    return tensor


def _is_linear(node: Node) -> bool:
    return node.kind == "Activation" and node.options.get("activation") in ("linear", None)


def read_activation(graph: KerasGraph, node: Node) -> Activated | None:
    """The activation that a layer is; None for other layers. Raises `CheckpointError` for an unknown one."""
    options = node.options
    if node.kind == "Activation":
        return named_activation(graph, node)
    if found := _of_class(node.kind, options):
        return found
    if node.kind in ("ReLU", "Softmax", "tf.nn.softmax", "tf.nn.leaky_relu", "LeakyRelu", "Elu", "Gelu"):
        return _of_operation(graph, node)
    if node.kind in _OPERATIONS:
        return Activated(*_ACTIVATIONS[_OPERATIONS[node.kind]])
    return None


def named_activation(graph: KerasGraph, node: Node) -> Activated:
    """The activation in a layer's option `activation`. Raises `CheckpointError` for an unknown one."""
    value = node.options.get("activation")
    if value is None:
        return Activated("linear")
    if isinstance(value, dict):
        kind, config = str(value.get("class_name")), value.get("config")
        if isinstance(config, dict) and (found := _of_class(kind, config)):
            return found
        value = config if kind == "function" else kind
    if isinstance(value, str) and value in _ACTIVATIONS:
        return Activated(*_ACTIVATIONS[value])
    if value == "hard_sigmoid" and graph.is_keras_3:
        return Activated("hardsigmoid")
    name = value[:40] if isinstance(value, str) else "a function of its own"
    raise graph.refusal(node, f"its activation is {name}, which is not known here")


def _of_class(kind: str, options: Mapping[str, Any]) -> Activated | None:
    """The activation of an activation layer; None for other layers and options."""
    if kind == "ReLU" and options.get("threshold", 0) in (0, None):
        slope, most = options.get("negative_slope") or 0, options.get("max_value")
        if slope and most is None:
            return Activated("leaky_relu", float(slope))
        if not slope and most in (None, 6):
            return Activated("relu" if most is None else "relu6")
    if kind == "LeakyReLU":
        slope = options.get("negative_slope", options.get("alpha", 0.3))
        return Activated("leaky_relu", float(slope)) if isinstance(slope, int | float) else None
    if kind == "ELU":
        return Activated("elu", float(options.get("alpha", 1.0)))
    if kind == "Softmax" and options.get("axis", -1) in (-1, 1, [-1], [1]):
        return Activated("softmax")
    return None


def _of_operation(graph: KerasGraph, node: Node) -> Activated:
    options = {**node.options, **node.keywords}
    if node.kind in ("Softmax", "tf.nn.softmax") and options.get("axis", -1) in (-1, 1, None):
        return Activated("softmax")
    if node.kind in ("tf.nn.leaky_relu", "LeakyRelu"):
        return Activated("leaky_relu", float(options.get("alpha", options.get("negative_slope", 0.2))))
    if node.kind == "Elu":
        return Activated("elu", float(options.get("alpha", 1.0)))
    if node.kind == "Gelu":
        return Activated("gelu_tanh" if options.get("approximate", True) else "gelu")
    raise graph.refusal(node, "its options are not known here")


def pair(value: Any) -> Size | None:
    """`2`, `[2]` or `[2, 3]` as two numbers; None for anything else."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and 0 <= each < 1 << 16 for each in values) or len(values) not in (1, 2):
        return None
    return values[0], values[-1]


def zero_pads(graph: KerasGraph, node: Node) -> Pads:
    """The padding of a ZeroPadding2D."""
    value = node.options.get("padding", 1)
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, list) for each in value):
        rows, columns = pair(value[0]), pair(value[1])
    else:
        both = pair(value)
        rows, columns = ((both[0],) * 2, (both[1],) * 2) if both else (None, None)
    if rows is None or columns is None or max(*rows, *columns) > 64:
        raise graph.refusal(node, "its padding is none that can be read")
    return *rows, *columns


def same_pads(size: Size, kernel: Size, stride: Size, dilation: Size) -> Pads:
    """TensorFlow's padding SAME: the output has ⌈n / stride⌉ rows, and an odd row of padding goes to the end."""
    pads: list[int] = []
    for side, length, step, hole in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-side // step) - 1) * step + (length - 1) * hole + 1 - side, 0)
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


def output_size(size: Size, pads: Pads, kernel: Size, stride: Size, dilation: Size) -> Size:
    rows = (size[0] + pads[0] + pads[1] - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
    columns = (size[1] + pads[2] + pads[3] - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
    return rows, columns


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a convolution or pool on its input."""

    kernel: Size
    stride: Size
    dilation: Size
    explicit: Pads
    """The zeros of a ZeroPadding2D before it."""
    pads: Pads
    """The sum of `explicit` and the padding SAME."""
    is_same: bool
    given: Size
    gives: Size

    @property
    def symmetric(self) -> Size | None:
        """The padding if it is the same on both sides; else None."""
        top, bottom, left, right = self.pads
        return (top, left) if (top, left) == (bottom, right) else None


def read_window(graph: KerasGraph, node: Node, explicit: Pads, size: Size) -> Window:
    """The window of a Conv2D or a pool on `size` points. Raises `CheckpointError` for unsupported options."""
    options = node.options
    is_pool = "pool_size" in options
    kernel = pair(options.get("pool_size" if is_pool else "kernel_size"))
    stride = pair(options["strides"] if options.get("strides") is not None else (kernel if not is_pool else None) or 1)
    if is_pool and options.get("strides") is None:
        stride = kernel
    dilation = pair(options.get("dilation_rate", 1))
    padding = options.get("padding", "valid")
    if not kernel or not stride or not dilation or 0 in (*kernel, *stride, *dilation):
        raise graph.refusal(node, "its kernel, strides or dilation cannot be read")
    if padding not in ("same", "valid"):
        raise graph.refusal(node, f"its padding is {str(padding)[:20]!r}")
    padded = (size[0] + explicit[0] + explicit[1], size[1] + explicit[2] + explicit[3])
    same = same_pads(padded, kernel, stride, dilation) if padding == "same" else (0, 0, 0, 0)
    pads = (explicit[0] + same[0], explicit[1] + same[1], explicit[2] + same[2], explicit[3] + same[3])
    gives = output_size(size, pads, kernel, stride, dilation)
    if min(gives) < 1:
        raise graph.refusal(node, f"nothing is left of the {size[0]}×{size[1]} points that it is given")
    return Window(kernel, stride, dilation, explicit, pads, padding == "same", size, gives)
