"""Layers as checkpoints state them → torch modules, put into a network by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from ..types import Layer, LayerKind

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, NDArray[Any]]
_WITH_WEIGHTS = ("linear", "batch_norm", "layer_norm")


def set_altered(network: torch.nn.Module, layers: tuple[Layer, ...]) -> None:
    """Make the layers of `network` what `layers` state: convolutions and normalisations keep their weights.

    Raises `CheckpointError` for a name that the network does not have.
    """
    import torch

    for layer in layers:
        block, _, part = layer.name.rpartition(".")
        if block and re.fullmatch("act[123]", part):
            from .bottleneck import set_activation

            set_activation(network, block, part, create_layer(layer))
            continue
        try:
            module = network.get_submodule(layer.name)
        except AttributeError:
            raise CheckpointError(
                f"The checkpoint states a layer {layer.name[:80]} ({layer.describe()}) that its network does not have."
            ) from None
        if layer.kind == "convolution":
            assert isinstance(module, torch.nn.Conv2d)
            for name in ("stride", "padding", "dilation"):
                value = getattr(layer, name)
                if value is not None:
                    setattr(module, name, value)
        elif layer.kind == "batch_norm":
            assert isinstance(module, torch.nn.BatchNorm2d)
            if layer.value is not None:
                module.eps = layer.value
        else:
            network.set_submodule(layer.name, create_layer(layer))


def set_head(network: torch.nn.Module, head: tuple[Layer, ...], weights: Weights, architecture: str) -> None:
    """Put `head` in the place of the network's `fc`. Raises `CheckpointError` for a network that has none."""
    import torch

    if not isinstance(getattr(network, "fc", None), torch.nn.Linear):
        raise CheckpointError(f"{architecture} takes no head of several layers: export the whole model to ONNX.")
    device = next(network.parameters()).device
    modules = []
    for number, layer in enumerate(head):
        if layer.kind in _WITH_WEIGHTS:
            shape = _shape(number, weights)
            modules.append(_with_weights(layer, shape, device))
        else:
            modules.append(create_layer(layer))
    network.add_module("fc", torch.nn.Sequential(*modules))


def count_outputs(head: tuple[Layer, ...], weights: Weights) -> int:
    """How many scores the last dense layer of `head` gives."""
    last = max(number for number, layer in enumerate(head) if layer.kind == "linear")
    return _shape(last, weights)[0]


def _shape(number: int, weights: Weights) -> tuple[int, ...]:
    values = weights.get(f"fc.{number}.weight")
    if values is None or values.ndim not in (1, 2):
        raise CheckpointError(f"The checkpoint has no weights for layer {number} of its head.")
    return tuple(values.shape)


def _with_weights(layer: Layer, shape: tuple[int, ...], device: torch.device) -> torch.nn.Module:
    import torch

    if layer.kind == "linear":
        return torch.nn.Linear(shape[-1], shape[0], device=device)
    epsilon = 1e-5 if layer.value is None else layer.value
    if layer.kind == "batch_norm":
        return torch.nn.BatchNorm1d(shape[0], epsilon, device=device)
    return torch.nn.LayerNorm(shape[0], epsilon, device=device)


def create_layer(layer: Layer) -> torch.nn.Module:
    """The module of a layer without weights."""
    return _FACTORIES[layer.kind](layer)


def _pool(kind: str) -> Callable[[Layer], torch.nn.Module]:
    def create(layer: Layer) -> torch.nn.Module:
        from torch import nn

        kernel = layer.kernel or (3, 3)
        kinds: Any = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
        options = {"stride": layer.stride or kernel, "padding": layer.padding or (0, 0), "ceil_mode": layer.ceil_mode}
        if kind == "max" and layer.dilation is not None:
            options["dilation"] = layer.dilation
        if kind == "average":
            options["count_include_pad"] = layer.count_include_pad
        module: torch.nn.Module = kinds[kind](kernel, **options)
        return module

    return create


def _adaptive_pool(name: str) -> Callable[[Layer], torch.nn.Module]:
    """A pool to `kernel` points, one unless that is given."""

    def create(layer: Layer) -> torch.nn.Module:
        import torch

        module: torch.nn.Module = getattr(torch.nn, name)(layer.kernel or (1, 1))
        return module

    return create


def _plain(name: str, *, value: str | None = None, **options: Any) -> Callable[[Layer], torch.nn.Module]:
    """A module of torch.nn; `value` names the argument that the layer's number is."""

    def create(layer: Layer) -> torch.nn.Module:
        import torch

        given = dict(options)
        if value is not None and layer.value is not None:
            given[value] = layer.value
        module: torch.nn.Module = getattr(torch.nn, name)(**given)
        return module

    return create


_FACTORIES: dict[LayerKind, Callable[[Layer], torch.nn.Module]] = {
    "identity": _plain("Identity"),
    "max_pool": _pool("max"),
    "average_pool": _pool("average"),
    "adaptive_max_pool": _adaptive_pool("AdaptiveMaxPool2d"),
    "adaptive_average_pool": _adaptive_pool("AdaptiveAvgPool2d"),
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
