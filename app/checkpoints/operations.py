"""torch's operations on symbolic values: input changes in a network's code, as a graph of layers.

TorchScript's code and torch.export's graph end here alike. What is not known stays in the graph under its name, so that
a network is refused by it where it lies between input and output, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import Layer, LayerKind
from .layer_facts import convolution

_MAX_CONSTANT = 64
_FLOAT32, _FLOAT64 = 6, 7  # c10/core/ScalarType.h
_FAR = 1 << 31


class Unread(Exception):
    """What the code does cannot be followed; the message says what that is."""


@dataclass(eq=False, slots=True)
class Node:
    """What an operation gives. `op` is one that the graph's reader knows, or "unknown"."""

    op: str
    inputs: tuple[Node, ...] = ()
    label: str = ""
    """The operation as the file names it."""
    layer: Layer | None = None
    weights: tuple[str, ...] = ()
    """Of a layer: the names of its tensors, the weight first."""
    data: Any = None
    rank: int | None = None
    later: Node | None = None
    """The result of an in-place operation on the variable, which later reads of the variable see."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the file."""

    name: str
    is_transposed: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """A node's size along an axis."""

    node: Node
    axis: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A number, a truth or a text that depends on what is not computed."""

    label: str


def now(value: Any) -> Any:
    """A value as it is after the operations in place on it."""
    while isinstance(value, Node) and value.later is not None:
        value = value.later
    return value


# The arguments of an operation in their order (ATen/native/native_functions.yaml).
_ARGUMENTS = {
    "conv2d": "self weight bias stride padding dilation groups",
    "_convolution_mode": "self weight bias stride padding dilation groups",
    "convolution": "self weight bias stride padding dilation transposed output_padding groups",
    "batch_norm": "self weight bias running_mean running_var training momentum eps",
    "native_batch_norm": "self weight bias running_mean running_var training momentum eps",
    "_native_batch_norm_legit_no_training": "self weight bias running_mean running_var momentum eps",
    "layer_norm": "self normalized_shape weight bias eps",
    "native_layer_norm": "self normalized_shape weight bias eps",
    "max_pool2d": "self kernel_size stride padding dilation ceil_mode",
    "avg_pool2d": "self kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "adaptive_avg_pool2d": "self output_size",
    "adaptive_max_pool2d": "self output_size",
    "mean": "self dim keepdim",
    "linear": "self weight bias",
    "addmm": "bias self weight beta alpha",
    "flatten": "self start_dim end_dim",
    **dict.fromkeys(("view", "reshape"), "self size"),
    **dict.fromkeys(("squeeze", "unsqueeze", "softmax", "log_softmax"), "self dim"),
    **dict.fromkeys(("add", "sub", "mul", "div", "rsub"), "self other alpha"),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), "self p train"),
    "leaky_relu": "self negative_slope",
    "rrelu": "self lower upper training",
    "elu": "self alpha scale input_scale",
    "gelu": "self approximate",
    "hardtanh": "self min_val max_val",
    "softplus": "self beta threshold",
    "clamp": "self min max",
    "flip": "self dims",
    "index": "self indices",
    "index_select": "self dim index",
    "slice": "self dim start end step",
    "constant_pad_nd": "self pad value",
    "pad": "self pad mode value",
    "permute": "self dims",
    "transpose": "self dim0 dim1",
    "matmul": "self weight",
}
_ALIASES = {
    **{"_convolution": "convolution", "cudnn_convolution": "convolution", "max_pool2d_with_indices": "max_pool2d"},
    **{"_adaptive_avg_pool2d": "adaptive_avg_pool2d", "_softmax": "softmax", "_log_softmax": "log_softmax"},
    **{"_unsafe_view": "view", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub"},
    **{"mm": "matmul", "relu6": "relu6", "swish": "silu", "cudnn_batch_norm": "batch_norm", "addmm": "addmm"},
}
_SEVERAL = {  # give (output, …), so many in all
    **{"max_pool2d_with_indices": 2, "adaptive_max_pool2d": 2},
    **{"native_batch_norm": 3, "_native_batch_norm_legit_no_training": 3, "native_layer_norm": 3},
}
_SAME = ("contiguous", "detach", "alias", "lift_fresh", "requires_grad", "expand_as", "cpu", "cuda")
_COPIES = ("clone", "lift_fresh_copy", "_to_copy", "to", "float", "type_as")
_PLAIN: dict[str, LayerKind] = {
    **{"relu": "relu", "relu6": "relu6", "selu": "selu", "silu": "silu", "mish": "mish", "hardswish": "hardswish"},
    **{"hardsigmoid": "hardsigmoid", "softsign": "softsign", "tanh": "tanh", "sigmoid": "sigmoid"},
}


class Operations:
    """Makes nodes of calls. `value_of` gives a tensor of the file by its name, where it is small."""

    def __init__(self, value_of: Callable[[str], NDArray[Any] | None]) -> None:
        self._value_of = value_of
        self.used: set[str] = set()
        """Names of the tensors that were read for their values."""

    def call(self, name: str, positional: Sequence[Any], named: Mapping[str, Any], label: str) -> Any:
        """What the operation `name` (`relu_`, `conv2d`, …) gives for its arguments."""
        is_in_place = name.endswith("_") and not name.endswith("__")
        base = name.rstrip("_") if is_in_place else name
        count = _SEVERAL.get(base, 1)
        base = _ALIASES.get(base, base)
        arguments = dict(zip(_ARGUMENTS.get(base, "self").split(), positional, strict=False)) | dict(named)
        if "input" in arguments:
            arguments["self"] = arguments.pop("input")
        rest = positional[len(_ARGUMENTS.get(base, "self").split()) :]
        given = now(arguments.get("self"))
        result = self._result(base, given, arguments, rest, label)
        if is_in_place and isinstance(given, Node) and isinstance(result, Node) and result is not given:
            given.later = result
        return result if count == 1 else (result, *[Unknown(label)] * (count - 1))

    def _result(self, base: str, given: Any, arguments: dict[str, Any], rest: Sequence[Any], label: str) -> Any:
        arguments = {key: now(value) for key, value in arguments.items()} | {"self": given}
        if base == "addmm":
            return self._addmm(arguments, label)
        if base in ("add", "sub", "mul", "div", "rsub") and arguments.get("rounding_mode") is None:
            return self._arithmetic(base, arguments, label)
        if isinstance(given, Weight) and base in ("t", "permute", "transpose", "numpy_T"):
            return Weight(given.name, not given.is_transposed)
        constant = self._constant(given)
        if constant is not None:
            return _of_constant(base, constant, arguments, rest, label)
        if not isinstance(given, Node):
            return Unknown(label)
        handler = getattr(self, f"_{base.strip('_')}", None) if base in _HANDLED else None
        try:
            if handler is not None:
                node = handler(given, arguments, label)
            elif base in _PLAIN:
                node = Node("layer", (given,), label, Layer("", _PLAIN[base]), rank=given.rank)
            elif base in _SAME:
                return given
            elif base in _COPIES:
                node = self._copy(given, arguments, rest, label)
            else:
                node = None
        except (KeyError, TypeError, ValueError):
            node = None
        if node is not None:
            return node
        others = tuple(each for each in arguments.values() if isinstance(each, Node) and each is not given)
        return Node("unknown", (given, *others), label)

    def _constant(self, value: Any) -> NDArray[Any] | None:
        """A small tensor's values, whether it is a constant of the code or a buffer of the file."""
        if isinstance(value, Weight) and not value.is_transposed:
            found = self._value_of(value.name)
            if found is not None and found.size <= _MAX_CONSTANT:
                self.used.add(value.name)
                return found.astype(np.float64) if found.dtype.kind == "f" else found
            return None
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return np.array(float(value)) if abs(value) < 1 << 62 else None
        return value if isinstance(value, np.ndarray) and value.size <= _MAX_CONSTANT else None

    def _arithmetic(self, base: str, arguments: dict[str, Any], label: str) -> Any:
        one, two = arguments["self"], arguments.get("other")
        factor = arguments.get("alpha", 1)
        if base == "rsub":
            one, two, base = two, one, "sub"
        if factor != 1 and not isinstance(two, Node):
            return Node("unknown", tuple(each for each in (one, two) if isinstance(each, Node)), label)
        first, second = self._constant(one), self._constant(two)
        if first is not None and second is not None:
            functions: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
            with np.errstate(all="ignore"):
                value = functions[base](first, second)
            return value.item() if value.ndim == 0 and not isinstance(one, np.ndarray) else value
        if isinstance(one, Node) and isinstance(two, Node):
            is_sum = base == "add" and factor == 1
            return Node("add" if is_sum else "unknown", (one, two), label, rank=one.rank)
        node = one if isinstance(one, Node) else two
        constant = second if isinstance(one, Node) else first
        if not isinstance(node, Node):
            return Unknown(label)
        channels = None if constant is None else _per_channel(constant)
        if channels is None:
            return Node("unknown", (node,), label, rank=node.rank)
        with np.errstate(all="ignore"):
            scale, shift = _factors(base, channels, isinstance(one, Node))
        if scale is None:
            return Node("unknown", (node,), label, rank=node.rank)
        return Node("affine", (node,), label, data=(scale, shift), rank=node.rank)

    def _addmm(self, arguments: dict[str, Any], label: str) -> Any:
        given, weight, bias = arguments["mat1" if "mat1" in arguments else "self"], None, arguments.get("bias")
        if "mat1" in arguments:
            weight, bias = arguments["mat2"], arguments["self"]
        else:
            weight = arguments.get("weight")
        is_plain = arguments.get("beta", 1) == 1 and arguments.get("alpha", 1) == 1
        given = now(given)
        if not isinstance(given, Node):
            return Unknown(label)
        if is_plain and isinstance(weight, Weight) and weight.is_transposed and isinstance(bias, Weight):
            return Node("layer", (given,), label, Layer("", "linear"), (weight.name, bias.name), rank=given.rank)
        return Node("unknown", (given,), label)

    def _matmul(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        weight = arguments.get("weight", arguments.get("mat2", arguments.get("other")))
        if not (isinstance(weight, Weight) and weight.is_transposed):
            return None
        return Node("layer", (given,), label, Layer("", "linear"), (weight.name,), rank=given.rank)

    def _linear(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        weight, bias = arguments["weight"], arguments.get("bias")
        if not isinstance(weight, Weight) or weight.is_transposed or not isinstance(bias, Weight | None):
            return None
        names = (weight.name, bias.name) if bias else (weight.name,)
        return Node("layer", (given,), label, Layer("", "linear"), names, rank=given.rank)

    def _conv2d(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        return self._convolution(given, arguments, label)

    def _convolution(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        weight, bias = arguments["weight"], arguments.get("bias")
        if not isinstance(weight, Weight) or not isinstance(bias, Weight | None) or arguments.get("transposed"):
            return None
        dilation = _pair(arguments.get("dilation", 1))
        padding = self._padding(arguments.get("padding", 0), weight, dilation)
        numbers = (_pair(arguments.get("stride", 1)), padding, dilation)
        names = (weight.name, bias.name) if bias else (weight.name,)
        layer = convolution("", *numbers)
        return Node("layer", (given,), label, layer, names, data=arguments.get("groups", 1), rank=4)

    def _padding(self, given: Any, weight: Weight, dilation: tuple[int, int]) -> tuple[int, int]:
        if given == "valid":
            return 0, 0
        if given != "same":
            return _pair(given)
        values = self._value_of(weight.name)
        if values is None or any(size % 2 == 0 for size in values.shape[2:]):
            raise ValueError
        height, width = values.shape[2:]
        return dilation[0] * (height // 2), dilation[1] * (width // 2)

    def _batch_norm(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if arguments.get("training", False):
            raise Unread(f"{label} in training mode, whose answers depend on the batch (call model.eval() before)")
        tensors = [arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
        epsilon = arguments["eps"]
        names = tuple(each.name for each in tensors if isinstance(each, Weight))
        if (
            len(names) + tensors.count(None) != 4
            or not isinstance(tensors[2], Weight)
            or not isinstance(epsilon, float)
        ):
            return None
        # A name's module is what matters, and one without scale and shift has its statistics alone.
        return Node("layer", (given,), label, Layer("", "batch_norm", value=epsilon), names, rank=given.rank)

    _convolution_mode = _conv2d
    _native_batch_norm = _batch_norm
    _native_batch_norm_legit_no_training = _batch_norm

    def _layer_norm(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        tensors = [arguments.get(name) for name in ("weight", "bias")]
        names = tuple(each.name for each in tensors if isinstance(each, Weight))
        if not names or len(arguments["normalized_shape"]) != 1:
            return None
        layer = Layer("", "layer_norm", value=float(arguments.get("eps", 1e-5)))
        return Node("layer", (given,), label, layer, names, rank=given.rank)

    _native_layer_norm = _layer_norm

    def _max_pool2d(self, given: Node, arguments: dict[str, Any], label: str) -> Node:
        kernel = _pair(arguments["kernel_size"])
        stride = _pair(arguments["stride"]) if arguments.get("stride") else kernel
        numbers = (stride, _pair(arguments.get("padding", 0)), _pair(arguments.get("dilation", 1)))
        layer = Layer("", "max_pool", kernel, *numbers, bool(arguments.get("ceil_mode", False)))
        return Node("layer", (given,), label, layer, rank=4)

    def _avg_pool2d(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if arguments.get("divisor_override") is not None:
            return None
        kernel = _pair(arguments["kernel_size"])
        stride = _pair(arguments["stride"]) if arguments.get("stride") else kernel
        counted = bool(arguments.get("count_include_pad", True))
        padding, ceil = _pair(arguments.get("padding", 0)), bool(arguments.get("ceil_mode", False))
        layer = Layer("", "average_pool", kernel, stride, padding, None, ceil, count_include_pad=counted)
        return Node("layer", (given,), label, layer, rank=4)

    def _adaptive_avg_pool2d(self, given: Node, arguments: dict[str, Any], label: str) -> Node:
        layer = Layer("", "adaptive_average_pool", _pair(arguments["output_size"]))
        return Node("layer", (given,), label, layer, rank=4)

    def _adaptive_max_pool2d(self, given: Node, arguments: dict[str, Any], label: str) -> Node:
        return Node("layer", (given,), label, Layer("", "adaptive_max_pool", _pair(arguments["output_size"])), rank=4)

    def _mean(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        axes = arguments.get("dim")
        if given.rank != 4 or not isinstance(axes, list) or {axis % 4 for axis in axes} != {2, 3}:
            return None
        layer = Layer("", "adaptive_average_pool", (1, 1))
        return Node("layer", (given,), label, layer, rank=4 if arguments.get("keepdim") else 2)

    def _flatten(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        start, end = arguments.get("start_dim", 0), arguments.get("end_dim", -1)
        if start not in (1, -3) or end not in (-1, 3):
            return None
        return Node("shape", (given,), label, rank=2)

    def _view(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        size = arguments["size"]
        is_flat = isinstance(size, list) and len(size) == 2 and (size[1] == -1 or isinstance(size[1], int | Size))
        return Node("shape", (given,), label, data=size[1], rank=2) if is_flat else None

    _reshape = _view

    def _squeeze(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        # Of 1×1 points behind a pool, and that nothing else is there is seen from the dense layer's width.
        axes = arguments.get("dim")
        axes = axes if isinstance(axes, list) else [axes]
        is_points = all(axis in (2, 3, -1, -2) for axis in axes)
        rank = given.rank - len(axes) if given.rank else None
        return Node("shape", (given,), label, rank=rank) if is_points else None

    def _dropout(self, given: Node, arguments: dict[str, Any], label: str) -> Node:
        if arguments.get("train", False) is True:
            raise Unread(f"{label} in training mode, whose answers are left to chance (call model.eval() before)")
        return given

    _feature_dropout = _dropout
    _alpha_dropout = _dropout

    def _softmax(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        return Node("softmax", (given,), label, rank=given.rank) if arguments["dim"] in (1, -1) else None

    _log_softmax = _softmax

    def _leaky_relu(self, given: Node, arguments: dict[str, Any], label: str) -> Node:
        slope = float(arguments.get("negative_slope", 0.01))
        return Node("layer", (given,), label, Layer("", "leaky_relu", value=slope), rank=given.rank)

    def _rrelu(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if arguments.get("training", False) is True:
            return None
        slope = (float(arguments.get("lower", 1 / 8)) + float(arguments.get("upper", 1 / 3))) / 2
        return Node("layer", (given,), label, Layer("", "leaky_relu", value=slope), rank=given.rank)

    def _elu(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if arguments.get("scale", 1) != 1 or arguments.get("input_scale", 1) != 1:
            return None
        return Node("layer", (given,), label, Layer("", "elu", value=float(arguments.get("alpha", 1))), rank=given.rank)

    def _gelu(self, given: Node, arguments: dict[str, Any], label: str) -> Node:
        kind: LayerKind = "gelu_tanh" if arguments.get("approximate") == "tanh" else "gelu"
        return Node("layer", (given,), label, Layer("", kind), rank=given.rank)

    def _hardtanh(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if (arguments.get("min_val", -1), arguments.get("max_val", 1)) != (0, 6):
            return None
        return Node("layer", (given,), label, Layer("", "relu6"), rank=given.rank)

    def _softplus(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if (arguments.get("beta", 1), arguments.get("threshold", 20)) != (1, 20):
            return None
        return Node("layer", (given,), label, Layer("", "softplus"), rank=given.rank)

    def _copy(self, given: Node, arguments: dict[str, Any], rest: Sequence[Any], label: str) -> Node | None:
        """A copy in float32 or float64; other formats compute something else."""
        values = [*rest, *arguments.values()]
        kinds = [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
        return Node("same", (given,), label, rank=given.rank) if set(kinds) <= {_FLOAT32, _FLOAT64} else None

    def _flip(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        return Node("reversed", (given,), label, rank=given.rank) if arguments["dims"] in ([1], [-3]) else None

    def _index(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        indices = list(arguments["indices"])
        whole = indices[1:2] and indices[0] is None and all(each is None for each in indices[2:])
        return self._channels(given, indices[1], label) if whole else None

    def _index_select(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        return self._channels(given, arguments["index"], label) if arguments["dim"] in (1, -3) else None

    def _channels(self, given: Node, order: Any, label: str) -> Node | None:
        values = self._constant(now(order))
        wanted = None if values is None else values.tolist()
        if wanted == [0, 1, 2]:
            return given
        return Node("reversed", (given,), label, rank=given.rank) if wanted == [2, 1, 0] else None

    def _slice(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        """All of it, as `x[:, …]` has it."""
        start, end, step = (arguments.get(name) for name in ("start", "end", "step"))
        is_whole = start in (None, 0) and (end is None or end > _FAR) and step in (None, 1)
        return given if is_whole else None

    def _constant_pad_nd(self, given: Node, arguments: dict[str, Any], label: str) -> Node | None:
        if arguments.get("mode", "constant") != "constant":
            return None
        value = arguments.get("value")
        return Node("pad", (given,), label, data=(list(arguments["pad"]), 0.0 if value is None else value), rank=4)

    _pad = _constant_pad_nd


_HANDLED = frozenset(name for name in _ARGUMENTS if hasattr(Operations, f"_{name.strip('_')}"))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if (
        not isinstance(value, list | tuple)
        or not 1 <= len(value) <= 2
        or not all(isinstance(each, int) for each in value)
    ):
        raise ValueError
    return (value[0], value[-1])


def _per_channel(constant: NDArray[Any]) -> NDArray[np.float64] | None:
    """One number for each of three channels of an NCHW image; None for anything else."""
    values = constant.astype(np.float64)
    if values.size == 1:
        return np.repeat(values.reshape(1), 3)
    return values.reshape(3) if values.shape in ((3, 1, 1), (1, 3, 1, 1)) else None


def _factors(
    base: str, constant: NDArray[np.float64], is_first: bool
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Factor and summand of `x op constant`, or of `constant op x`."""
    one, zero = np.ones(3), np.zeros(3)
    if base == "add":
        return one, constant
    if base == "sub":
        return (one, -constant) if is_first else (-one, constant)
    if base == "mul":
        return constant, zero
    return (1 / constant, zero) if is_first else (None, zero)


def _of_constant(base: str, value: NDArray[Any], arguments: Mapping[str, Any], rest: Sequence[Any], label: str) -> Any:
    """An operation on a constant: those by which means and deviations are brought into shape."""
    try:
        if base in ("view", "reshape"):
            return value.reshape(arguments["size"])
        if base == "unsqueeze":
            return np.expand_dims(value, arguments["dim"])
        if base == "squeeze":
            return value.reshape([size for size in value.shape if size != 1])
        if base in _SAME or base in _COPIES or base == "slice":
            return value
        if base == "flip":
            return np.flip(value, arguments["dims"])
        if base == "neg":
            return -value
    except (KeyError, TypeError, ValueError):
        pass
    return Unknown(label)
