"""Whether weights are those of a network: by their names, shapes and number formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import CheckpointError
from .signatures import advice

Shapes = Mapping[str, tuple[int, ...]]
Weights = Mapping[str, NDArray[Any]]


def check_fit(architecture: str, expected: Shapes, weights: Weights, ignored: tuple[str, ...] = ()) -> None:
    """Raises `CheckpointError` in one line for the first entry that is missing, of another shape, or too much.

    Entries whose names begin with one of `ignored` may be there or not.
    """
    found = {name: tuple(values.shape) for name, values in weights.items() if name in expected}
    if found != dict(expected) or _unexpected(expected, weights, ignored):
        raise misfit(architecture, expected, weights, ignored)


def check_floats(names: Mapping[str, object], weights: Weights) -> None:
    """Raises `CheckpointError` for the first of `names` whose values are no floats."""
    for name in names:
        if weights[name].dtype.kind != "f":
            raise CheckpointError(
                f"The checkpoint's {name} is {weights[name].dtype}. Expected floats: quantized weights do not fit."
            )


def misfit(architecture: str, expected: Shapes, weights: Weights, ignored: tuple[str, ...] = ()) -> CheckpointError:
    missing = [name for name in expected if name not in weights]
    other = [name for name in expected if name in weights and tuple(weights[name].shape) != expected[name]]
    extra = _unexpected(expected, weights, ignored)
    if missing:
        found = f"it lacks {len(missing)} of {len(expected)} entries, {missing[0]} first; it has {_some(weights)}"
    elif other:
        name = other[0]
        found = f"{name} is {_shape(weights[name].shape)} where {_shape(expected[name])} was expected"
    else:
        found = f"it has {len(extra)} entries that the network does not, {extra[0]} first"
    return CheckpointError(f"The checkpoint does not fit {architecture}: {found}. {advice(architecture, weights)}")


def _unexpected(expected: Shapes, weights: Weights, ignored: tuple[str, ...]) -> list[str]:
    return [name for name in weights if name not in expected and not (ignored and name.startswith(ignored))]


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single value"


def _some(weights: Weights) -> str:
    names = list(weights)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "none"
