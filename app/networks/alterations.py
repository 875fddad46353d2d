"""Layers as a checkpoint states them, put into a description: altered ones of the body, and a head of several."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from ..layers import Layer
from .description import Description, Step

Weights = Mapping[str, NDArray[Any]]
_NORM_EPSILON = 1e-5
_WITH_TENSORS = ("convolution", "linear", "batch_norm", "layer_norm")


def with_altered(description: Description, layers: tuple[Layer, ...]) -> Description:
    """The description with `layers` in the place of its own of those names; a block's `relu` is all its activations.

    Convolutions and normalisations keep their tensors, and what a layer does not state. Raises `CheckpointError` for a
    name that the network does not have.
    """
    steps = {step.name: step for step in description.steps}
    for layer in layers:
        names = [layer.name]
        if layer.name not in steps and layer.name.endswith(".relu"):
            prefix = layer.name.removesuffix("relu")
            names = [name for name in steps if re.fullmatch(re.escape(prefix) + "act[123]", name)]
        if not names or any(not _takes(steps.get(name), layer) for name in names):
            raise CheckpointError(
                f"The checkpoint states a layer {layer.name[:80]} ({layer.describe()}) that its network does not have."
            )
        for name in names:
            steps[name] = _altered(steps[name], layer)
    return Description(tuple(steps.values()))


def _takes(step: Step | None, layer: Layer) -> bool:
    """Whether `layer` can stand where `step` is: of the same kind if it has tensors, else another without."""
    if step is None or not isinstance(step.operation, Layer):
        return False
    if step.shapes or layer.kind in _WITH_TENSORS:
        return step.kind == layer.kind
    return True


def _altered(step: Step, layer: Layer) -> Step:
    stated = replace(layer, name=step.name)
    if step.shapes:
        own = step.layer
        given = {
            name: value
            for name in ("stride", "padding", "dilation", "value")
            if (value := getattr(layer, name)) is not None
        }
        stated = replace(own, **given)
    return replace(step, operation=complete(stated))


def complete(layer: Layer) -> Layer:
    """The layer with torch.nn's defaults for what it does not state."""
    if layer.kind in ("max_pool", "average_pool"):
        kernel = layer.kernel or (3, 3)
        dilation = layer.dilation or (1, 1) if layer.kind == "max_pool" else None
        padding = layer.padding or (0, 0)
        return replace(layer, kernel=kernel, stride=layer.stride or kernel, padding=padding, dilation=dilation)
    if layer.kind in ("adaptive_max_pool", "adaptive_average_pool"):
        return replace(layer, kernel=layer.kernel or (1, 1))
    return layer


def with_head(description: Description, head: tuple[Layer, ...], weights: Weights, architecture: str) -> Description:
    """The description with the layers of `head`, called `fc.0`, `fc.1`, …, in the place of its classifier `fc`.

    Their shapes are those of `weights`. Raises `CheckpointError` where `weights` lack one, or the network has no `fc`.
    """
    *body, classifier = description.steps
    if classifier.name != "fc":
        raise no_head(architecture)
    last = classifier.inputs[0]
    for number, layer in enumerate(head):
        name = f"fc.{number}"
        body.append(Step(name, replace(_stated(layer), name=name), (last,), _shapes(layer, number, weights)))
        last = name
    return Description(tuple(body))


def no_head(architecture: str) -> CheckpointError:
    return CheckpointError(f"{architecture} takes no head of several layers: export the whole model to ONNX.")


def _stated(layer: Layer) -> Layer:
    if layer.kind in ("batch_norm", "layer_norm") and layer.value is None:
        return replace(layer, value=_NORM_EPSILON)
    return complete(layer)


def _shapes(layer: Layer, number: int, weights: Weights) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if layer.kind not in _WITH_TENSORS:
        return ()
    values = weights.get(f"fc.{number}.weight")
    if values is None or values.ndim not in (1, 2):
        raise CheckpointError(f"The checkpoint has no weights for layer {number} of its head.")
    outputs, inputs = values.shape[0], values.shape[-1]
    if layer.kind == "linear":
        return ("weight", (outputs, inputs)), ("bias", (outputs,))
    leaves = ("weight", "bias") if layer.kind == "layer_norm" else ("weight", "bias", "running_mean", "running_var")
    return tuple((leaf, (outputs,)) for leaf in leaves)


def count_outputs(head: tuple[Layer, ...], weights: Weights) -> int:
    """How many scores the last dense layer of `head` gives."""
    last = max(number for number, layer in enumerate(head) if layer.kind == "linear")
    return _shapes(head[last], last, weights)[0][1][0]
