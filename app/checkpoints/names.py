"""Stored names of tensors → torchvision's for the body and `fc.…` for the head; every other tensor is accounted for.

A float tensor is used, is left out by a rule with a reason why it cannot change an answer (`left_out`), or keeps its
own name, by which `networks.count_classes` refuses the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..layers import Layer
from .base import Decision, Stored, Told, Weights
from .families import Place, find_places
from .family_names import leaf_of_torch
from .heads import find_head
from .left_out import Normalisation, leave_out
from .state_dict import clean, is_counter
from .tensor_axes import to_torch_axes

Arrays = dict[str, NDArray[Any]]
# Scopes of MoCo and BYOL, whose layers after the body give no classes.
_SELF_SUPERVISED = re.compile(r"(?:^|[./])(?:encoder_[qk]|(?:base|momentum|online|target)_(?:encoder|network))[./]$")


@dataclass(frozen=True, slots=True)
class Settled:
    """A checkpoint's weights under the names that `networks` uses."""

    weights: Weights
    place: Place | None
    """The family and scope of the body's names; None if no ResNet-50 was found, and the names are only cleaned."""
    told: Told
    """Facts that the names and the tensors outside the body show."""
    normalisation: Normalisation | None = None
    """Mean and deviation that the checkpoint has as tensors."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def settle_names(stored: Stored, path: Path) -> Settled:
    """Rename the tensors of `stored`.

    Raises `CheckpointError` if two entries would have the same name, or if there are two different networks.
    """
    places = find_places(stored.tensors)
    if not places:
        return Settled(clean(stored.tensors, path), None, Told())
    place, *others = places
    body, rest = _apart(stored.tensors, place, path)
    notes: list[str] = []
    for other in others:
        notes += _drop_equal(rest, body, place, other, path)
    if place.family.channels_last:
        body = {name: to_torch_axes(values) for name, values in body.items()}
        rest = {name: to_torch_axes(values) for name, values in rest.items()}
    kept = leave_out(rest, stored.tensors)
    notes += _place_stem(body, kept.tensors)
    outside: Arrays = {}
    for name, values in kept.tensors.items():
        torchs = leaf_of_torch(name) if place.family.channels_last else name
        bare = torchs.removeprefix(place.scope)
        outside[torchs if bare in outside else bare] = values
    head = find_head(
        outside,
        _bare(stored.told.head, place),
        path,
        is_keras=place.family.channels_last,
        scope=place.scope.rstrip("./"),
    )
    if head.weights and _SELF_SUPERVISED.search(place.scope):
        raise CheckpointError(
            f"{path} has its network under {_scope(place)}, as self-supervised training leaves it: its last layers "
            f"({', '.join(list(outside)[:2])[:80]}) are a projector, and no classifier. Train a classifier on it."
        )
    told = Told()
    if head.layers:
        told = Told(head=Decision(head.layers, head.source, head.is_assumed))
    elif stored.told.head is not None:
        # One dense layer, as stated in the file.
        told = Told(head=Decision((), stored.told.head.source))
    return Settled(
        weights=_fold_biases({**body, **head.weights, **head.unused}),
        place=place,
        told=told,
        normalisation=kept.normalisation,
        notes=(*notes, *kept.notes, *head.notes),
        warnings=head.warnings,
    )


_STEM_SHAPE = (64, 3, 7, 7)
_NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")


def _place_stem(body: Arrays, rest: Arrays) -> list[str]:
    """Move a stem with unusual names (`stem.0`, `layer0.1`) into the body: its shapes identify it."""
    if "conv1.weight" in body or "layer1.0.conv1.weight" not in body:
        return []
    kernels = [name for name, values in rest.items() if values.shape == _STEM_SHAPE and name.endswith(".weight")]
    norms = [
        name.removesuffix(".running_var")
        for name, values in rest.items()
        if name.endswith(".running_var") and values.shape == _STEM_SHAPE[:1]
    ]
    if len(kernels) != 1 or len(norms) != 1 or not all(f"{norms[0]}.{leaf}" in rest for leaf in _NORM_LEAVES):
        return []
    body["conv1.weight"] = rest.pop(kernels[0])
    for leaf in _NORM_LEAVES:
        body[f"bn1.{leaf}"] = rest.pop(f"{norms[0]}.{leaf}")
    return [f"{kernels[0]} and {norms[0]} are taken for the first convolution and its normalisation, by their shapes."]


def _bare(head: Decision[tuple[Layer, ...]] | None, place: Place) -> Decision[tuple[Layer, ...]] | None:
    """The layers under the names of their tensors without the scope."""
    if head is None:
        return None
    return replace(head, value=tuple(replace(layer, name=layer.name.removeprefix(place.scope)) for layer in head.value))


def _apart(tensors: Weights, place: Place, path: Path) -> tuple[Arrays, Arrays]:
    """The body under torchvision's names, and the rest under its own."""
    body: Arrays = {}
    rest: Arrays = {}
    for stored, values in tensors.items():
        name = place.rename(stored)
        if name is not None and is_counter(name):
            continue
        if name is None:
            rest[stored] = values
        elif name in body:
            raise CheckpointError(
                f"{path} holds two networks: more than one entry becomes {name}. Save the one to serve."
            )
        else:
            body[name] = values
    return body, rest


def _drop_equal(rest: Arrays, body: Mapping[str, Any], place: Place, other: Place, path: Path) -> list[str]:
    """Take a second network that equals the first out of `rest`; raise `CheckpointError` for one that differs."""
    copies = {stored: name for stored in rest if (name := other.rename(stored)) is not None and not is_counter(stored)}
    for stored, name in copies.items():
        if name not in body or not np.array_equal(body[name], rest[stored]):
            raise CheckpointError(
                f"{path} holds two networks, under {_scope(place)} and under {_scope(other)}, and {name} differs. "
                f"Save the one to serve."
            )
    for stored in copies:
        del rest[stored]
    return [f"The network under {_scope(other)} equals the one under {_scope(place)}, which is served."]


def _fold_biases(weights: dict[str, NDArray[Any]]) -> Weights:
    """Subtract the bias of a convolution from the mean of the normalisation behind it: (x + b) - m = x - (m - b)."""
    for name in [name for name in weights if re.search(r"(?:^|\.)(?:conv\d|downsample\.0)\.bias$", name)]:
        bias = weights.pop(name)
        norm = name.removesuffix(".bias").replace("conv", "bn").replace("downsample.0", "downsample.1")
        mean = f"{norm}.running_mean"
        if mean in weights:
            weights[mean] = weights[mean] - bias
    return weights


def _scope(place: Place) -> str:
    return repr(place.scope.rstrip("./")[:60]) if place.scope else "no prefix"
