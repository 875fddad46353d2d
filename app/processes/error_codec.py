"""Errors sent from one process to another: by the name of their class, with the arguments of its constructor.

Only classes that both sides have listed can be received. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

E = TypeVar("E", bound=Exception)

# Constructor arguments besides the text. Each is an attribute of the same name.
_ARGUMENTS = ("retry_after_seconds", "may_pass")


class ErrorCodec(Generic[E]):
    """The classes that may be sent. A subclass is sent as its nearest listed base, other errors as the first class."""

    def __init__(self, *kinds: type[E]) -> None:
        self._kinds = kinds
        self._by_name: dict[str, Callable[..., E]] = {kind.__name__: kind for kind in kinds}

    def number_of(self, error: BaseException) -> int:
        """The index of the class that the error is sent as, for records of a fixed size."""
        kind = self._kind_of(error)
        return 0 if kind is None else self._kinds.index(kind)

    def kind(self, number: int) -> type[E]:
        return self._kinds[number]

    def encode(self, error: BaseException) -> dict[str, Any]:
        """The error as members of a JSON object."""
        kind = self._kind_of(error)
        if kind is None:
            # The text of an unlisted error may name files, or not be fit to show.
            return {"error": self._kinds[0].__name__}
        arguments = {name: getattr(error, name) for name in _ARGUMENTS if hasattr(error, name)}
        return {"error": kind.__name__, "text": str(error), **arguments}

    def decode(self, document: dict[str, Any]) -> E:
        """Raises `KeyError` or `TypeError` for a document that `encode` does not write."""
        arguments = {name: document[name] for name in _ARGUMENTS if name in document}
        kind = self._by_name[document["error"]]
        return kind(document["text"], **arguments) if "text" in document else kind()

    def _kind_of(self, error: BaseException) -> type[E] | None:
        return next((base for base in type(error).__mro__ if base in self._by_name.values()), None)
