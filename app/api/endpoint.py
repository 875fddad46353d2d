"""Endpoints as data: a path, the errors it is answered with, and how a request becomes images and results an answer.

A protocol is a folder of this package with a parser, a renderer and an error format; its endpoints are entries of the
one list in `registry`. `road` runs them; admission, body limits, the log and the OpenAPI document look them up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastapi.routing import APIRoute
from starlette.routing import compile_path
from starlette.types import Scope

from ..errors import ServiceError
from ..types import Classification, ModelIdentity
from .carried import Images


class ErrorFormat(Protocol):
    """The shape of a protocol's errors."""

    media_type: str

    def body(self, error: ServiceError, request_id: str, root_path: str) -> bytes:
        """An error's body. The id is at most 64 letters, digits, - and _."""
        ...


class Parser(Protocol):
    """Reads one request. The constructor raises the `ServiceError` of a parameter outside the body."""

    timeout_seconds: float | None
    """The deadline that the client asked for, counted from the end of the body."""

    def feed(self, data: bytes) -> None:
        """Parse the next piece of the body. Raises the `ServiceError` to answer the body with."""
        ...

    def finish(self) -> Images:
        """The images of the whole body, at least one. Raises a `ServiceError`."""
        ...


@dataclass(frozen=True, slots=True)
class Results:
    """The outcome of one request: for each image, in the order sent, its classification or its own error."""

    model: ModelIdentity
    images: Sequence[Classification | ServiceError]
    request_id: str
    root_path: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Endpoint:
    """A path and its error format."""

    path: str
    """A pattern of Starlette's routing, such as `/models/{name}/predict`."""
    errors: ErrorFormat
    methods: tuple[str, ...] = ("POST",)
    max_body_bytes: int
    document: APIRoute | None = None
    """A function that describes the endpoint in the OpenAPI document. It is never called."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImageEndpoint(Endpoint):
    """A path whose requests contain images: they are admitted before their body is read."""

    parser: Callable[[Scope, Mapping[bytes, bytes]], Parser]
    """Called with the ASGI scope and the first header of each name."""
    render: Callable[[Results], bytes | ServiceError]
    """Returns the answer's body, or the error that answers the whole request."""
    media_type: str = "application/json"


class Endpoints:
    """Finds the endpoint of a request."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._all = tuple(endpoints)
        self._literal: dict[tuple[str, str], Endpoint] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        for endpoint in self._all:
            if "{" in endpoint.path:
                self._patterns.append((compile_path(endpoint.path)[0], endpoint))
            else:
                self._literal.update({(method, endpoint.path): endpoint for method in endpoint.methods})

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._all)

    def fixed_paths(self) -> frozenset[str]:
        """The paths without parameters."""
        return frozenset(path for _, path in self._literal)

    def find(self, method: str, path: str) -> Endpoint | None:
        """The endpoint of a request. `path` is decoded, without the prefix that a proxy has stripped."""
        found = self._literal.get((method, path))
        if found is None:
            for pattern, endpoint in self._patterns:
                if method in endpoint.methods and pattern.match(path):
                    return endpoint
        return found
