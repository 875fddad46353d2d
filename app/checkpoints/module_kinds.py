"""Pickled modules, by class → layers as they state themselves. Classes that are not listed are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..layers import Layer, LayerKind
from .layer_facts import convolution

Facts = Mapping[str, Any]

# Classes without effect at inference; losses and metrics are no part of the network.
_INERT = re.compile(
    r"^(?:torch\.nn\.modules\.(?:linear\.Identity|dropout\.\w+|loss\.\w+)"
    r"|timm\.(?:layers|models\.layers)\.drop\.\w+|torchvision\.ops\.(?:stochastic_depth|drop_block)\.\w+"
    r"|torch\.(?:ao\.)?quantization\.stubs\.\w+|torch\.(?:ao\.)?nn\.quantized\.modules\.functional_modules\.FloatFunctional"
    r"|torchmetrics\.[\w.]+)$"
)
# Classes whose forward this service's networks repeat, or that only call their children.
_KNOWN = re.compile(
    r"^(?:torchvision\.models\.resnet\.\w+|torchvision\.models\.quantization\.resnet\.\w+|timm\.models\.resnet\.\w+"
    r"|timm\.layers\.[\w.]+|timm\.utils\.model_ema\.\w+|transformers\.models\.resnet\.\w+\.\w+|transformers\.activations\.\w+"
    r"|torch\.nn\.modules\.container\.Sequential|torch\.nn\.parallel\.\w+\.\w+|torch\._dynamo\.eval_frame\.OptimizedModule"
    r"|torch\.optim\.swa_utils\.AveragedModel|torchmetrics\.[\w.]+)$"
)
_LIBRARY = ("torch.nn.", "torchvision.", "timm.", "transformers.activations.")
NORMALIZE = re.compile(r"^torchvision\.transforms\.(?:transforms|v2\._misc)\.Normalize$")


class Unlike(Exception):
    """An unsupported module, which the message describes."""


def is_inert(kind: str) -> bool:
    return _INERT.match(kind) is not None


def is_known(kind: str) -> bool:
    """Whether the forward of a container class is known."""
    return _KNOWN.match(kind) is not None


def layer_of(kind: str, facts: Facts) -> Layer:
    """The layer, without a name, for a module of the class `kind`. Raises `Unlike`."""
    name = kind.rpartition(".")[2]
    if not kind.startswith(_LIBRARY) or name not in _LAYERS:
        raise Unlike(f"a {kind}")
    return _LAYERS[name](facts)


def _pair(facts: Facts, key: str, default: int | None = None) -> tuple[int, int]:
    value = facts.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, list) and len(value) == 2 and all(isinstance(each, int) for each in value):
        return value[0], value[1]
    raise Unlike(f"a layer whose {key} is {str(value)[:40]}")


def _convolution(facts: Facts) -> Layer:
    mode = facts.get("padding_mode", "zeros")
    if mode != "zeros" or facts.get("transposed", False):
        raise Unlike(f"a convolution with padding_mode {str(mode)[:40]!r}")
    dilation = _pair(facts, "dilation", 1)
    padding = facts.get("padding", 0)
    if padding == "valid":
        pads = (0, 0)
    elif padding == "same":
        kernel = _pair(facts, "kernel_size")
        if any(size % 2 == 0 for size in kernel):
            raise Unlike("a convolution with an even kernel and padding 'same'")
        pads = dilation[0] * (kernel[0] // 2), dilation[1] * (kernel[1] // 2)
    else:
        pads = _pair(facts, "padding", 0)
    return convolution("", _pair(facts, "stride", 1), pads, dilation)


def _normalisation(kind: LayerKind) -> Callable[[Facts], Layer]:
    def create(facts: Facts) -> Layer:
        epsilon = facts.get("eps")
        if not isinstance(epsilon, float):
            raise Unlike("a normalisation that does not say its epsilon")
        return Layer("", kind, value=epsilon)

    return create


def _max_pool(facts: Facts) -> Layer:
    kernel = _pair(facts, "kernel_size")
    stride = _pair(facts, "stride") if facts.get("stride") is not None else kernel
    ceil = facts.get("ceil_mode", False) is True
    return Layer("", "max_pool", kernel, stride, _pair(facts, "padding", 0), _pair(facts, "dilation", 1), ceil)


def _average_pool(facts: Facts) -> Layer:
    if facts.get("divisor_override") is not None:
        raise Unlike("an average pool with a divisor of its own")
    kernel = _pair(facts, "kernel_size")
    stride = _pair(facts, "stride") if facts.get("stride") is not None else kernel
    padding, ceil = _pair(facts, "padding", 0), facts.get("ceil_mode", False) is True
    counted = facts.get("count_include_pad", True) is True
    return Layer("", "average_pool", kernel, stride, padding, None, ceil, count_include_pad=counted)


def _adaptive_pool(kind: LayerKind) -> Callable[[Facts], Layer]:
    return lambda facts: Layer("", kind, _pair(facts, "output_size"))


def _select_pool(facts: Facts) -> Layer:
    """timm's SelectAdaptivePool2d."""
    kinds: dict[Any, LayerKind] = {
        **{"avg": "adaptive_average_pool", "fast": "adaptive_average_pool", "fastavg": "adaptive_average_pool"},
        **{"max": "adaptive_max_pool", "fastmax": "adaptive_max_pool"},
    }
    kind = facts.get("pool_type", "avg")
    if kind not in kinds:
        raise Unlike(f"a SelectAdaptivePool2d of the kind {str(kind)[:40]!r}")
    return Layer("", kinds[kind], (1, 1))


def _plain(kind: LayerKind) -> Callable[[Facts], Layer]:
    return lambda facts: Layer("", kind)


def _valued(kind: LayerKind, key: str, default: float) -> Callable[[Facts], Layer]:
    return lambda facts: Layer("", kind, value=float(facts.get(key, default)))


def _gelu(facts: Facts) -> Layer:
    return Layer("", "gelu_tanh" if facts.get("approximate") == "tanh" else "gelu")


def _softplus(facts: Facts) -> Layer:
    if (facts.get("beta", 1), facts.get("threshold", 20)) != (1, 20):
        raise Unlike("a Softplus with a beta or a threshold of its own")
    return Layer("", "softplus")


def _hardtanh(facts: Facts) -> Layer:
    if (facts.get("min_val"), facts.get("max_val")) != (0, 6):
        raise Unlike("a Hardtanh")
    return Layer("", "relu6")


_LAYERS: dict[str, Callable[[Facts], Layer]] = {
    "Conv2d": _convolution,
    **dict.fromkeys(("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d", "BatchNorm1d"), _normalisation("batch_norm")),
    "LayerNorm": _normalisation("layer_norm"),
    **dict.fromkeys(("Linear", "NonDynamicallyQuantizableLinear"), _plain("linear")),
    "MaxPool2d": _max_pool,
    "AvgPool2d": _average_pool,
    "AdaptiveAvgPool2d": _adaptive_pool("adaptive_average_pool"),
    "AdaptiveMaxPool2d": _adaptive_pool("adaptive_max_pool"),
    "SelectAdaptivePool2d": _select_pool,
    "Identity": _plain("identity"),
    "ReLU": _plain("relu"),
    "ReLU6": _plain("relu6"),
    "Hardtanh": _hardtanh,
    "LeakyReLU": _valued("leaky_relu", "negative_slope", 0.01),
    # At inference its slope is the mean of its two bounds.
    "RReLU": lambda facts: Layer("", "leaky_relu", value=(facts.get("lower", 1 / 8) + facts.get("upper", 1 / 3)) / 2),
    "ELU": _valued("elu", "alpha", 1.0),
    "SELU": _plain("selu"),
    **dict.fromkeys(("GELU", "GELUActivation"), _gelu),
    **dict.fromkeys(("GELUTanh", "PytorchGELUTanh"), _plain("gelu_tanh")),
    **dict.fromkeys(("SiLU", "SiLUActivation", "Swish"), _plain("silu")),
    **dict.fromkeys(("Mish", "MishActivation"), _plain("mish")),
    **dict.fromkeys(("Hardswish", "HardSwish"), _plain("hardswish")),
    **dict.fromkeys(("Hardsigmoid", "HardSigmoid"), _plain("hardsigmoid")),
    "Softplus": _softplus,
    "Softsign": _plain("softsign"),
    "Tanh": _plain("tanh"),
    "Sigmoid": _plain("sigmoid"),
}
ACTIVATIONS = frozenset(
    {"identity", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh", "silu", "mish", "hardswish"}
    | {"hardsigmoid", "softplus", "softsign", "tanh", "sigmoid"}
)
POOLS = frozenset({"identity", "max_pool", "average_pool", "adaptive_max_pool", "adaptive_average_pool"})
