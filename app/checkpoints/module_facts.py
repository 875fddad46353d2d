"""Facts of a pickled module's layers that its weights do not state, or a refusal with the module's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..layers import InputChange, Layer
from ..types import Activation
from .base import Decision, Modules, Told, Weights
from .families import Place, find_places
from .layer_facts import Shape, expected_body, told_by_body
from .module_kinds import ACTIVATIONS, NORMALIZE, POOLS, Unlike, is_inert, is_known, layer_of
from .module_names import layers_of

_ONNX = "Export the model to ONNX (torch.onnx.export) and serve that."
_LAST: dict[str, Activation] = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
_SAME = re.compile(r"^torch\.nn\.modules\.(?:flatten\.Flatten)$")


@dataclass(frozen=True, slots=True)
class Read:
    """Facts of the modules, and warnings."""

    told: Told = field(default_factory=Told)
    warnings: tuple[str, ...] = ()


def read_modules(modules: Modules, tensors: Weights, source: str, path: Path) -> Read:
    """The facts of `modules`. Raises `CheckpointError` for a module of the network that is not supported."""
    places = find_places(tensors)
    if not places:
        return Read(warnings=_warnings(modules, path))
    return _Reader(modules, tensors, places[0], source, path).read()


def _warnings(modules: Modules, path: Path) -> tuple[str, ...]:
    """A sentence if a module has a custom class, whose code may do more than its layers state."""
    own = {
        name: kind
        for name, kind in ((name, _kind(facts)) for name, facts in modules.items())
        if not kind.startswith(("torch.nn.", "torchvision.", "timm.")) and not is_known(kind) and not is_inert(kind)
    }
    if not own:
        return ()
    name, kind = next(iter(own.items()))
    what = f"is a pickled {kind}" if not name else f"has a {kind} in it ({name[:60]})"
    return (
        f"{path.name} {what}, whose own code never runs here: it is served as the network that its layers make up.",
    )


def _kind(facts: Mapping[str, Any]) -> str:
    return str(facts.get("class", ""))


class _Reader:
    def __init__(self, modules: Modules, tensors: Weights, place: Place, source: str, path: Path) -> None:
        self._modules = modules
        self._tensors = tensors
        self._place = place
        self._source = source
        self._path = path
        names = (place.rename(name) for name in tensors)
        self._shape = Shape.of(name for name in names if name is not None)
        self._expected = expected_body(self._shape)
        self._body: dict[str, Layer] = {}

    def read(self) -> Read:
        outside = []
        self._refuse_anti_aliasing()
        for name, facts in self._modules.items():
            self._check_code(name, facts)
            layers = layers_of(self._place, name)
            if layers is not None:
                self._add(name, facts, layers)
            elif not self._children(name) and name:
                outside.append(name)
        change, head, activation = self._outside(outside)
        told = told_by_body(self._body, self._shape, self._source)
        return Read(replace(told, head=head, activation=activation, input=change), _warnings(self._modules, self._path))

    def _refuse_anti_aliasing(self) -> None:
        for name, facts in self._modules.items():
            kind = _kind(facts).rpartition(".")[2]
            if "blurpool" in kind.lower() or (name.endswith(".aa") and not is_inert(_kind(facts))):
                raise CheckpointError(
                    f"{self._path} has anti-aliased strides ({name} is a {kind}), as timm's resnetaa50 and "
                    f"resnetblur50: they are not served. Export the model to ONNX (torch.onnx.export) and serve that."
                )

    def _check_code(self, name: str, facts: Mapping[str, Any]) -> None:
        """Raises `CheckpointError` for a module with its own code, besides that of its class."""
        what = "a hook" if facts.get("hooks") else "a forward of its own" if facts.get("forward") else ""
        if what and not is_inert(_kind(facts)):
            raise CheckpointError(
                f"{self._path}: {name or 'the model'} has {what}, which is code and never runs here. {_ONNX}"
            )

    def _children(self, name: str) -> list[str]:
        """The direct children of a module."""
        prefix = f"{name}." if name else ""
        return [
            other for other in self._modules if other and other.startswith(prefix) and "." not in other[len(prefix) :]
        ]

    def _add(self, name: str, facts: Mapping[str, Any], layers: tuple[str, ...]) -> None:
        """Record a module of the body: a layer, or a container."""
        expected = [each for each in layers if each in self._expected]
        kind, children = _kind(facts), self._children(name)
        if not expected:
            self._check_extra(name, kind, children)
            return
        if children and kind.endswith(".Sequential"):
            inner = [each for each in children if not is_inert(_kind(self._modules[each]))]
            inner = [each for each in inner if not _SAME.match(_kind(self._modules[each]))]
            if len(inner) > 1:
                raise self._unlike(name, f"a Sequential of {len(inner)} layers")
            facts = self._modules[inner[0]] if inner else {"class": "torch.nn.modules.linear.Identity"}
        layer = self._layer(name, facts)
        wanted = self._expected[expected[0]].kind
        fits = ACTIVATIONS if wanted in ACTIVATIONS - {"identity"} else POOLS if wanted in POOLS else {wanted}
        if layer.kind not in fits:
            raise self._unlike(name, f"a {_kind(facts)}")
        for each in expected:
            self._body[each] = replace(layer, name=each)

    def _check_extra(self, name: str, kind: str, children: list[str]) -> None:
        """Check a module of the body that is none of its layers: it must be a container or have no effect."""
        above = layers_of(self._place, name.rpartition(".")[0]) or ()
        # Modules within a Sequential that is a pool or an activation are checked with that Sequential.
        is_within = any(each in self._expected for each in above)
        if not (children or is_within or is_inert(kind) or self._is_container(kind)):
            raise self._unlike(name, f"a {kind}")

    def _is_container(self, kind: str) -> bool:
        return kind.endswith((".Sequential", ".Bottleneck", ".ModuleList", ".ModuleDict")) or is_known(kind)

    def _layer(self, name: str, facts: Mapping[str, Any]) -> Layer:
        try:
            return layer_of(_kind(facts), facts) if not is_inert(_kind(facts)) else Layer("", "identity")
        except Unlike as unlike:
            raise self._unlike(name, str(unlike)) from None

    def _unlike(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: {name[:80]} is {what}, which a ResNet-50 that is served does not have there. {_ONNX}"
        )

    def _outside(
        self, names: list[str]
    ) -> tuple[Decision[InputChange] | None, Decision[tuple[Layer, ...]] | None, Decision[Activation] | None]:
        """The change of the input, the head and the final activation, from the modules outside the body."""
        change: Decision[InputChange] | None = None
        head: list[Layer] = []
        activation: Decision[Activation] | None = None
        for name in names:
            facts, kind = self._modules[name], _kind(self._modules[name])
            if is_inert(kind) or _SAME.match(kind) or not self._is_called(name):
                continue
            if NORMALIZE.match(kind):
                change = Decision(self._normalisation(name, facts), self._source)
                continue
            if self._is_normaliser(name, kind):
                continue
            if activation is not None:
                raise self._unlike(name, f"a {kind} behind the probabilities")
            last = kind.rpartition(".")[2]
            if kind.startswith("torch.nn.") and last in _LAST and self._is_last(name, names):
                if last != "Sigmoid" and facts.get("dim", 1) not in (1, -1, None):
                    raise self._unlike(name, f"a {last} over axis {facts['dim']}")
                activation = Decision(_LAST[last], self._source)
                continue
            layer = replace(self._layer(name, facts), name=name)
            if layer.kind in POOLS:
                self._add_pool(name, layer, bool(head))
            elif layer.kind == "convolution":
                raise self._unlike(name, f"a {kind}")
            else:
                head.append(layer)
        return change, self._chain(head), activation

    def _is_called(self, name: str) -> bool:
        """Whether the forward of its parent module calls it: torchvision's and timm's call only `fc`."""
        owner = self._place.scope.rstrip(".")
        is_plain = re.match(r"^(?:torchvision|timm)\.models\.resnet\.ResNet$", _kind(self._modules.get(owner, {})))
        if not is_plain or not name.startswith(self._place.scope):
            return True
        return name.removeprefix(self._place.scope).partition(".")[0] == "fc"

    def _is_last(self, name: str, names: list[str]) -> bool:
        behind = names[names.index(name) + 1 :]
        return all(is_inert(_kind(self._modules[each])) or not self._is_called(each) for each in behind)

    def _is_normaliser(self, name: str, kind: str) -> bool:
        """Whether it is a custom class with a mean and a deviation, which `left_out` finds among the tensors."""
        leaves = {each.removeprefix(f"{name}.") for each in self._tensors if each.startswith(f"{name}.")}
        return not kind.startswith(("torch.", "torchvision.", "timm.")) and leaves == {"mean", "std"}

    def _normalisation(self, name: str, facts: Mapping[str, Any]) -> InputChange:
        values = (facts.get("mean"), facts.get("std"))
        mean, std = ([float(n) for n in each if n is not None] if isinstance(each, list) else [] for each in values)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise self._unlike(name, "a Normalize without three means and deviations above zero")
        return InputChange.of_normalisation(mean, std)

    def _add_pool(self, name: str, layer: Layer, is_late: bool) -> None:
        """Record a pool after a body without one, as in a custom class that wraps the body."""
        points = self._body.get("avgpool")
        is_again = layer.kind.startswith("adaptive") and layer.kernel == (1, 1)
        if points is None or points.kind == "identity":
            if is_late:
                raise self._unlike(name, "a pool behind the head's layers")
            self._body["avgpool"] = replace(layer, name="avgpool")
        elif not (is_again and points.kernel == (1, 1)):
            raise self._unlike(name, "a second pool behind the body")

    def _chain(self, head: list[Layer]) -> Decision[tuple[Layer, ...]] | None:
        """The head's layers; None if the modules do not show the functions between them."""
        linears = [layer for layer in head if layer.kind == "linear"]
        if not linears:
            return None
        weights = [self._tensors.get(f"{layer.name}.weight") for layer in linears]
        widths = [(each.shape[1], each.shape[0]) for each in weights if each is not None and each.ndim == 2]
        for (_, outputs), (inputs, _), layer in zip(widths, widths[1:], linears[1:], strict=False):
            if outputs != inputs:
                raise CheckpointError(
                    f"{self._path}: {layer.name[:80]} takes {inputs} numbers, and the dense layer before it gives "
                    f"{outputs}: the modules behind the network are no chain. {_ONNX}"
                )
        for before, layer in pairwise(head):
            parent = layer.name.rpartition(".")[0]
            is_own = not is_known(_kind(self._modules.get(parent, {})))
            if before.kind == layer.kind == "linear" and is_own:
                # Its forward may call a ReLU between them that is not a module.
                return None
        return Decision(tuple(head), self._source)
