"""Errors sent from one process to another: by the name of their class, with the arguments of its constructor.

Only classes that both sides have listed can arrive. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

E = TypeVar("E", bound=Exception)

# Besides the text. Each is an attribute of the same name.
_ARGUMENTS = ("retry_after_seconds", "may_pass")


class ErrorCodec(Generic[E]):
    """The errors that may be sent. Any other is sent as the first class, with its default text."""

    def __init__(self, *kinds: type[E]) -> None:
        self._kinds = kinds
        self._by_name: dict[str, Callable[..., E]] = {kind.__name__: kind for kind in kinds}

    def number_of(self, error: BaseException) -> int:
        """For records of a fixed size: which of the classes it is."""
        return self._kinds.index(type(error)) if type(error) in self._kinds else 0

    def kind(self, number: int) -> type[E]:
        return self._kinds[number]

    def encode(self, error: BaseException) -> dict[str, Any]:
        """As members of a JSON object."""
        if type(error) not in self._kinds:
            return {"error": self._kinds[0].__name__}
        arguments = {name: getattr(error, name) for name in _ARGUMENTS if hasattr(error, name)}
        return {"error": type(error).__name__, "text": str(error), **arguments}

    def decode(self, document: dict[str, Any]) -> E:
        """Raises `KeyError` or `TypeError` for what `encode` does not write."""
        arguments = {name: document[name] for name in _ARGUMENTS if name in document}
        kind = self._by_name[document["error"]]
        return kind(document["text"], **arguments) if "text" in document else kind()
