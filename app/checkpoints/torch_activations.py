"""torch's activation functions as layers, with their parameters; softmax."""

from __future__ import annotations

from functools import partial

from ..layers import Layer, LayerKind
from .symbolic_values import Node
from .torch_calls import Call, Handler


def _plain(call: Call, kind: LayerKind) -> Node:
    return call.layer(Layer("", kind), rank=call.given.rank)


def _leaky_relu(call: Call) -> Node:
    slope = float(call.arguments.get("negative_slope", 0.01))
    return call.layer(Layer("", "leaky_relu", value=slope), rank=call.given.rank)


def _rrelu(call: Call) -> Node | None:
    arguments = call.arguments
    if arguments.get("training", False) is True:
        return None
    slope = (float(arguments.get("lower", 1 / 8)) + float(arguments.get("upper", 1 / 3))) / 2
    return call.layer(Layer("", "leaky_relu", value=slope), rank=call.given.rank)


def _elu(call: Call) -> Node | None:
    arguments = call.arguments
    if arguments.get("scale", 1) != 1 or arguments.get("input_scale", 1) != 1:
        return None
    return call.layer(Layer("", "elu", value=float(arguments.get("alpha", 1))), rank=call.given.rank)


def _gelu(call: Call) -> Node:
    return _plain(call, "gelu_tanh" if call.arguments.get("approximate") == "tanh" else "gelu")


def _hardtanh(call: Call) -> Node | None:
    is_relu6 = (call.arguments.get("min_val", -1), call.arguments.get("max_val", 1)) == (0, 6)
    return _plain(call, "relu6") if is_relu6 else None


def _softplus(call: Call) -> Node | None:
    is_default = (call.arguments.get("beta", 1), call.arguments.get("threshold", 20)) == (1, 20)
    return _plain(call, "softplus") if is_default else None


def _softmax(call: Call) -> Node | None:
    return call.node("softmax", rank=call.given.rank) if call.arguments["dim"] in (1, -1) else None


_PLAIN: tuple[LayerKind, ...] = (
    *("relu", "relu6", "selu", "silu", "mish", "hardswish"),
    *("hardsigmoid", "softsign", "tanh", "sigmoid"),
)
ACTIVATIONS: dict[str, Handler] = {
    **{kind: partial(_plain, kind=kind) for kind in _PLAIN},
    "leaky_relu": _leaky_relu,
    "rrelu": _rrelu,
    "elu": _elu,
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "softplus": _softplus,
    "softmax": _softmax,
    "log_softmax": _softmax,
}
