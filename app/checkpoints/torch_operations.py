"""torch's operations on symbolic values: the code of a network becomes a graph of layers.

TorchScript's code and torch.export's graph both use it. An operation that is not supported becomes a node "unknown".
The network is refused only where such a node lies between its input and its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from .symbolic_values import Node, Unknown, Weight, now
from .torch_activations import ACTIVATIONS
from .torch_arithmetic import ARITHMETIC, arithmetic
from .torch_calls import Call, Handler
from .torch_constants import Tensors, unary_on_constant
from .torch_layers import LAYERS, addmm
from .torch_signatures import ALIASES, ARGUMENTS, RESULTS
from .torch_tensors import TENSORS

_HANDLERS: dict[str, Handler] = {**LAYERS, **ACTIVATIONS, **TENSORS}


class Operations:
    """Computes the results of calls. `values_of` returns a tensor of the file by its name."""

    def __init__(self, values_of: Callable[[str], NDArray[Any] | None]) -> None:
        self._tensors = Tensors(values_of)

    @property
    def used(self) -> set[str]:
        """Names of the tensors that were read as constants."""
        return self._tensors.used

    def call(self, name: str, positional: Sequence[Any], named: Mapping[str, Any], label: str) -> Any:
        """The result of the operation `name` (`relu_`, `conv2d`, …), a tuple where it has several."""
        is_in_place = name.endswith("_") and not name.endswith("__")
        base = name.rstrip("_") if is_in_place else name
        count = RESULTS.get(base, 1)
        base = ALIASES.get(base, base)
        signature = ARGUMENTS.get(base, "self").split()
        arguments = dict(zip(signature, positional, strict=False)) | dict(named)
        if "input" in arguments:
            arguments["self"] = arguments.pop("input")
        given = now(arguments.get("self"))
        result = self._result(base, given, arguments, positional[len(signature) :], label)
        if is_in_place and isinstance(given, Node) and isinstance(result, Node) and result is not given:
            given.later = result
        return result if count == 1 else (result, *[Unknown(label)] * (count - 1))

    def _result(self, base: str, given: Any, arguments: dict[str, Any], rest: Sequence[Any], label: str) -> Any:
        arguments = {key: now(value) for key, value in arguments.items()} | {"self": given}
        if base == "addmm":
            return addmm(arguments, label)
        if base in ARITHMETIC and arguments.get("rounding_mode") is None:
            return arithmetic(base, arguments, self._tensors, label)
        if isinstance(given, Weight) and base in ("t", "permute", "transpose", "numpy_T"):
            return Weight(given.name, not given.is_transposed)
        constant = self._tensors.constant(given)
        if constant is not None:
            return unary_on_constant(base, constant, arguments, label)
        if not isinstance(given, Node):
            return Unknown(label)
        handler = _HANDLERS.get(base)
        try:
            node = handler(Call(given, arguments, rest, label, self._tensors)) if handler is not None else None
        except (KeyError, TypeError, ValueError):
            node = None
        if node is not None:
            return node
        others = tuple(each for each in arguments.values() if isinstance(each, Node) and each is not given)
        return Node("unknown", (given, *others), label)
