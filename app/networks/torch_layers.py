"""Steps of a description → torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import nn

from ..layers import Layer, LayerKind
from .description import Step, same_zeros

_IN_PLACE: dict[str, type[nn.ReLU] | type[nn.ReLU6]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def create_module(step: Step, *, is_flat: bool, is_in_place: bool) -> nn.Module:
    """The module of a step's layer.

    `is_flat`: its input is `(N, C)`. `is_in_place`: it may write over its input, if it can.
    """
    layer = step.layer
    weight = step.shape("weight")
    if layer.kind == "convolution":
        assert weight is not None
        return _convolution(step, weight)
    if layer.kind == "linear":
        assert weight is not None
        return nn.Linear(weight[1], weight[0])
    if layer.kind == "batch_norm":
        assert weight is not None
        assert layer.value is not None
        kind = nn.BatchNorm1d if is_flat else nn.BatchNorm2d
        return kind(weight[0], layer.value)
    if layer.kind == "layer_norm":
        assert weight is not None
        assert layer.value is not None
        return nn.LayerNorm(weight[0], layer.value)
    if is_in_place and layer.kind in _IN_PLACE:
        return _IN_PLACE[layer.kind](inplace=True)
    return _FACTORIES[layer.kind](layer)


def padded(inputs: torch.Tensor, step: Step) -> torch.Tensor:
    """`inputs` with the zeros that `step` has around them."""
    if step.zeros is None:
        return inputs
    if step.zeros == "same":
        weight = step.shape("weight")
        assert weight is not None
        assert step.layer.stride is not None
        return pad_same(inputs, (weight[2], weight[3]), step.layer.stride)
    top, left, bottom, right = step.zeros
    return nn.functional.pad(inputs, (left, right, top, bottom))


# Tracing passes over it: it computes with sizes.
@torch.fx.wrap
def pad_same(inputs: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    sizes = zip(inputs.shape[2:], kernel, stride, strict=True)
    (top, bottom), (left, right) = (same_zeros(*each) for each in sizes)
    return nn.functional.pad(inputs, (left, right, top, bottom))


def _convolution(step: Step, weight: tuple[int, ...]) -> nn.Module:
    layer = step.layer
    assert layer.stride is not None
    assert layer.padding is not None
    assert layer.dilation is not None
    return nn.Conv2d(
        weight[1] * step.groups,
        weight[0],
        (weight[2], weight[3]),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=step.groups,
        bias=step.shape("bias") is not None,
    )


def _pool(layer: Layer) -> nn.Module:
    assert layer.kernel is not None
    options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "ceil_mode": layer.ceil_mode}
    if layer.kind == "max_pool":
        return nn.MaxPool2d(layer.kernel, dilation=layer.dilation or 1, **options)
    return nn.AvgPool2d(layer.kernel, count_include_pad=layer.count_include_pad, **options)


def _plain(name: str, *, value: str | None = None, **options: Any) -> Callable[[Layer], nn.Module]:
    """A module of torch.nn; `value` names the argument for the layer's number."""

    def create(layer: Layer) -> nn.Module:
        given = dict(options)
        if value is not None and layer.value is not None:
            given[value] = layer.value
        module: nn.Module = getattr(nn, name)(**given)
        return module

    return create


_FACTORIES: dict[LayerKind, Callable[[Layer], nn.Module]] = {
    "max_pool": _pool,
    "average_pool": _pool,
    "adaptive_max_pool": lambda layer: nn.AdaptiveMaxPool2d(layer.kernel or (1, 1)),
    "adaptive_average_pool": lambda layer: nn.AdaptiveAvgPool2d(layer.kernel or (1, 1)),
    "relu": _plain("ReLU"),
    "relu6": _plain("ReLU6"),
    "leaky_relu": _plain("LeakyReLU", value="negative_slope"),
    "elu": _plain("ELU", value="alpha"),
    "selu": _plain("SELU"),
    "gelu": _plain("GELU"),
    "gelu_tanh": _plain("GELU", approximate="tanh"),
    "silu": _plain("SiLU"),
    "mish": _plain("Mish"),
    "hardswish": _plain("Hardswish"),
    "hardsigmoid": _plain("Hardsigmoid"),
    "softplus": _plain("Softplus"),
    "softsign": _plain("Softsign"),
    "tanh": _plain("Tanh"),
    "sigmoid": _plain("Sigmoid"),
}
