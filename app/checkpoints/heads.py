"""The classifier head behind the pooled features, under any name: one dense layer, or several.

A single dense layer of (n, 2048) is the classifier, whatever its name. Several layers are ordered by shapes and names.
A bare state dict does not state the activations between them: a ReLU is assumed, with a warning. Dropout has no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..layers import Layer, LayerKind
from .base import Decision

FEATURES = 2048
_SELF_SUPERVISED = re.compile(r"project|prototype|predictor|contrast|queue|encoder_[kq]", re.IGNORECASE)
# Up to this many modules are tried in every order; more only in stored and in natural order.
_MOST_PERMUTED = 6
_EPSILON, _KERAS_EPSILON = 1e-5, 1e-3  # defaults of normalisations in torch.nn and keras.layers

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier's weights as `fc.…`, and the tensors without a place in the network."""

    weights: Arrays = field(default_factory=dict)
    unused: Arrays = field(default_factory=dict)
    """Tensors that the network has no place for, under their own names."""
    layers: tuple[Layer, ...] = ()
    """() for one dense layer, `fc`; otherwise the weights of layer i are `fc.i.…`."""
    source: str = "its shapes"
    is_assumed: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    tensors: Arrays
    place: str
    """The name that gives its position in a Sequential: its own, or its network's for the `fc` of a ResNet in one."""

    @property
    def kind(self) -> LayerKind | None:
        weight = self.tensors.get("weight")
        if weight is not None and weight.ndim == 2 and self.tensors.keys() <= {"weight", "bias"}:
            return "linear"
        leaves = {name for name, values in self.tensors.items() if values.ndim == 1}
        if leaves != self.tensors.keys() or len({len(values) for values in self.tensors.values()}) != 1:
            return None
        if {"running_mean", "running_var"} <= leaves <= {"running_mean", "running_var", "weight", "bias"}:
            return "batch_norm"
        return "layer_norm" if leaves == {"weight", "bias"} else None

    @property
    def inputs(self) -> int:
        return int(next(iter(self.tensors.values())).shape[-1]) if self.kind != "linear" else self.shape[1]

    @property
    def outputs(self) -> int:
        return self.shape[0] if self.kind == "linear" else self.inputs

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.tensors["weight"].shape
        return int(rows), int(columns)


def find_head(
    outside: Mapping[str, NDArray[Any]],
    told: Decision[tuple[Layer, ...]] | None,
    path: Path,
    is_keras: bool = False,
    scope: str = "",
) -> Head:
    """The head among the tensors outside the body, with torch's leaf names and axes.

    `told` has the layers in order if the file states them. Raises `CheckpointError` if there are several dense layers
    that form no single chain, so that the classifier is unknown.
    """
    modules = _modules(outside, scope)
    if told is not None:
        return _stated(modules, told, path)
    usable = [module for module in modules if module.kind is not None and not _SELF_SUPERVISED.search(module.name)]
    linears = [module for module in usable if module.kind == "linear"]
    takers = [module for module in linears if module.inputs == FEATURES]
    if not takers:
        return Head(unused=_names_of(modules))
    order = _order(usable)
    if order is None:
        # A single (n, 2048) is the classifier, whatever is beside it.
        if len(linears) > 1:
            raise CheckpointError(
                f"{path} has {len(linears)} dense layers behind the network that make no one chain "
                f"({', '.join(f'{each.name[:60]} {each.shape[0]}×{each.shape[1]}' for each in linears[:4])}): which of "
                f"them classifies is not said. Save the model with one classifier, or export it to ONNX."
            )
        order = linears
    unused = _names_of(module for module in modules if module not in order)
    if len(order) == 1:
        return Head(_single(order[0]), unused)
    epsilon = _KERAS_EPSILON if is_keras else _EPSILON
    layers = tuple(_with_activations(order, epsilon))
    warnings: tuple[str, ...] = ()
    whole = "model.save('model.keras')" if is_keras else "torch.save(model, ...)"
    is_assumed = _is_open(order)
    if is_assumed:
        names = ", ".join(module.name[:60] for module in order)
        between = "ReLU" if any(layer.kind == "relu" for layer in layers) else "nothing"
        warnings = (
            f"{path.name} does not say what lies between the layers of its head ({names}): assuming {between}. If it "
            f"is something else, save the whole model ({whole}) or export it to ONNX.",
        )
    normalisations = ", ".join(module.name[:60] for module in order if module.kind != "linear")
    if normalisations:
        warnings += (
            f"{path.name} does not say the epsilon of the normalisations in its head ({normalisations}): assuming "
            f"{epsilon:g}. If it is another one, save the whole model ({whole}) or export it to ONNX.",
        )
    return Head(_numbered(layers, order), unused, layers, "its shapes and names", is_assumed, warnings=warnings)


def _stated(modules: Sequence[_Module], told: Decision[tuple[Layer, ...]], path: Path) -> Head:
    """The head as the file states it. Raises `CheckpointError` for a layer whose weights the file lacks."""
    by_name = {module.name: module for module in modules}
    used = []
    for layer in told.value:
        if layer.kind in ("linear", "batch_norm", "layer_norm"):
            module = by_name.get(layer.name)
            if module is None or module.kind != layer.kind:
                raise CheckpointError(
                    f"{path}: {told.source} states the layer {layer.name[:80]} ({layer.kind}), and the file has no "
                    f"weights for it. Save it again."
                )
            used.append(module)
    unused = _names_of(module for module in modules if module not in used)
    if [layer.kind for layer in told.value] == ["linear"]:
        return Head(_single(used[0]), unused)
    return Head(_numbered(told.value, used), unused, told.value, told.source, told.is_assumed)


def _modules(outside: Mapping[str, NDArray[Any]], scope: str) -> list[_Module]:
    modules: dict[str, Arrays] = {}
    for name, values in outside.items():
        module, _, leaf = name.rpartition(".")
        # A 1×1 convolution of pooled features is a dense layer.
        is_pointwise = leaf == "weight" and values.ndim == 4 and values.shape[2:] == (1, 1)
        modules.setdefault(module, {})[leaf] = values.reshape(values.shape[:2]) if is_pointwise else values
    # torchvision's ResNet ends in its own classifier: in a Sequential, later layers follow that classifier.
    return [_Module(name, tensors, scope if name == "fc" and scope else name) for name, tensors in modules.items()]


def _names_of(modules: Sequence[_Module] | Iterator[_Module]) -> Arrays:
    return {
        f"{module.name}.{leaf}" if module.name else leaf: values
        for module in modules
        for leaf, values in module.tensors.items()
    }


def _order(modules: Sequence[_Module]) -> list[_Module] | None:
    """The order in which each module takes the output of the one before; None if there is none, or several."""
    natural = sorted(modules, key=lambda module: _natural(module.name))
    for order in (list(modules), natural):
        if _is_chain(order):
            return order
    if len(modules) > _MOST_PERMUTED:
        return None
    chains = [list(order) for order in permutations(modules) if _is_chain(order)]
    return chains[0] if len(chains) == 1 else None


def _is_chain(order: Sequence[_Module]) -> bool:
    width = FEATURES
    for module in order:
        if module.inputs != width:
            return False
        width = module.outputs
    return order[-1].kind == "linear"


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts fc2 before fc10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _gap(before: _Module, after: _Module) -> int | None:
    """The number of modules without weights between two modules of one Sequential; None if they are not in one."""
    parent, _, number = before.place.rpartition(".")
    other, _, following = after.place.rpartition(".")
    if parent != other or not (number.isdigit() and following.isdigit()) or int(following) <= int(number):
        return None
    return int(following) - int(number) - 1


def _with_activations(order: Sequence[_Module], epsilon: float) -> Iterator[Layer]:
    """The layers, and one ReLU after each hidden dense layer, in the first free position after it."""
    is_wanted = False
    for before, module in zip([None, *order], order, strict=False):
        if is_wanted and before is not None:
            gap = _gap(before, module)
            # By names alone, a normalisation comes before the activation.
            is_here = gap > 0 if gap is not None else module.kind == "linear"
            if is_here:
                yield Layer(f"relu behind {before.name}", "relu")
                is_wanted = False
        if module.kind == "linear":
            is_wanted = True
        yield _layer(module, epsilon)


def _is_open(order: Sequence[_Module]) -> bool:
    """Whether a module without weights could lie between two of the modules."""
    return any(_gap(before, after) != 0 for before, after in pairwise(order))


def _layer(module: _Module, epsilon: float) -> Layer:
    assert module.kind is not None
    return Layer(module.name, module.kind, value=None if module.kind == "linear" else epsilon)


def _single(linear: _Module) -> Arrays:
    return {f"fc.{leaf}": values for leaf, values in _filled(linear).items()}


def _numbered(layers: Sequence[Layer], modules: Sequence[_Module]) -> Arrays:
    left = iter(modules)
    weights: Arrays = {}
    for number, layer in enumerate(layers):
        if layer.kind in ("linear", "batch_norm", "layer_norm"):
            weights |= {f"fc.{number}.{leaf}": values for leaf, values in _filled(next(left)).items()}
    return weights


def _filled(module: _Module) -> Arrays:
    """The module's tensors, with neutral values for a missing bias or scale."""
    neutral = {"bias": np.zeros(module.outputs, np.float32)}
    if module.kind != "linear":
        neutral["weight"] = np.ones(module.outputs, np.float32)
    return {**neutral, **module.tensors}
