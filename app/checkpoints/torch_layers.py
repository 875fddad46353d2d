"""torch's operations that are layers with weights or pooling: convolution, normalisation, pools, linear, dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..layers import Layer
from .layer_facts import convolution
from .symbolic_values import Node, Unknown, Unread, Weight, now
from .torch_calls import Call, Handler, pair


def addmm(arguments: Mapping[str, Any], label: str) -> Any:
    """`bias + given @ weight`. The node is not the first argument, so this is not a `Handler`."""
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


def _matmul(call: Call) -> Node | None:
    arguments = call.arguments
    weight = arguments.get("weight", arguments.get("mat2", arguments.get("other")))
    if not (isinstance(weight, Weight) and weight.is_transposed):
        return None
    return call.layer(Layer("", "linear"), (weight.name,), rank=call.given.rank)


def _linear(call: Call) -> Node | None:
    weight, bias = call.arguments["weight"], call.arguments.get("bias")
    if not isinstance(weight, Weight) or weight.is_transposed or not isinstance(bias, Weight | None):
        return None
    names = (weight.name, bias.name) if bias else (weight.name,)
    return call.layer(Layer("", "linear"), names, rank=call.given.rank)


def _convolution(call: Call) -> Node | None:
    arguments = call.arguments
    weight, bias = arguments["weight"], arguments.get("bias")
    if not isinstance(weight, Weight) or not isinstance(bias, Weight | None) or arguments.get("transposed"):
        return None
    dilation = pair(arguments.get("dilation", 1))
    padding = _padding(call, weight, dilation)
    layer = convolution("", pair(arguments.get("stride", 1)), padding, dilation)
    names = (weight.name, bias.name) if bias else (weight.name,)
    return call.layer(layer, names, data=arguments.get("groups", 1), rank=4)


def _padding(call: Call, weight: Weight, dilation: tuple[int, int]) -> tuple[int, int]:
    given = call.arguments.get("padding", 0)
    if given == "valid":
        return 0, 0
    if given != "same":
        return pair(given)
    values = call.tensors.values_of(weight.name)
    if values is None or any(size % 2 == 0 for size in values.shape[2:]):
        raise ValueError
    height, width = values.shape[2:]
    return dilation[0] * (height // 2), dilation[1] * (width // 2)


def _batch_norm(call: Call) -> Node | None:
    arguments = call.arguments
    if arguments.get("training", False):
        raise Unread(f"{call.label} in training mode, whose answers depend on the batch (call model.eval() before)")
    tensors = [arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    epsilon = arguments["eps"]
    names = tuple(each.name for each in tensors if isinstance(each, Weight))
    if len(names) + tensors.count(None) != 4 or not isinstance(tensors[2], Weight) or not isinstance(epsilon, float):
        return None
    # `graph_facts` reads the module's name from the first tensor. Without scale and shift that is the running mean.
    return call.layer(Layer("", "batch_norm", value=epsilon), names, rank=call.given.rank)


def _layer_norm(call: Call) -> Node | None:
    tensors = [call.arguments.get(name) for name in ("weight", "bias")]
    names = tuple(each.name for each in tensors if isinstance(each, Weight))
    if not names or len(call.arguments["normalized_shape"]) != 1:
        return None
    layer = Layer("", "layer_norm", value=float(call.arguments.get("eps", 1e-5)))
    return call.layer(layer, names, rank=call.given.rank)


def _max_pool2d(call: Call) -> Node:
    arguments = call.arguments
    kernel = pair(arguments["kernel_size"])
    stride = pair(arguments["stride"]) if arguments.get("stride") else kernel
    padding, dilation = pair(arguments.get("padding", 0)), pair(arguments.get("dilation", 1))
    ceil = bool(arguments.get("ceil_mode", False))
    return call.layer(Layer("", "max_pool", kernel, stride, padding, dilation, ceil), rank=4)


def _avg_pool2d(call: Call) -> Node | None:
    arguments = call.arguments
    if arguments.get("divisor_override") is not None:
        return None
    kernel = pair(arguments["kernel_size"])
    stride = pair(arguments["stride"]) if arguments.get("stride") else kernel
    counted = bool(arguments.get("count_include_pad", True))
    padding, ceil = pair(arguments.get("padding", 0)), bool(arguments.get("ceil_mode", False))
    layer = Layer("", "average_pool", kernel, stride, padding, None, ceil, count_include_pad=counted)
    return call.layer(layer, rank=4)


def _adaptive_avg_pool2d(call: Call) -> Node:
    return call.layer(Layer("", "adaptive_average_pool", pair(call.arguments["output_size"])), rank=4)


def _adaptive_max_pool2d(call: Call) -> Node:
    return call.layer(Layer("", "adaptive_max_pool", pair(call.arguments["output_size"])), rank=4)


def _mean(call: Call) -> Node | None:
    """Over height and width: a global average pool."""
    axes = call.arguments.get("dim")
    if call.given.rank != 4 or not isinstance(axes, list) or {axis % 4 for axis in axes} != {2, 3}:
        return None
    layer = Layer("", "adaptive_average_pool", (1, 1))
    return call.layer(layer, rank=4 if call.arguments.get("keepdim") else 2)


def _dropout(call: Call) -> Node:
    if call.arguments.get("train", False) is True:
        raise Unread(f"{call.label} in training mode, whose answers are left to chance (call model.eval() before)")
    return call.given


LAYERS: dict[str, Handler] = {
    **dict.fromkeys(("conv2d", "convolution", "_convolution_mode"), _convolution),
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    "linear": _linear,
    "matmul": _matmul,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
    "mean": _mean,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
}
