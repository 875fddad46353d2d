"""The state of one request: a typed object under one key of its ASGI scope."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .endpoint import Endpoint, ErrorFormat
from .leases import Lease
from .native.problems import PROBLEMS

_KEY = "resnet_serve"


class Connection(Protocol):
    """A request's connection, as this service's own server offers it. Other ASGI servers have no equivalent."""

    def tell_when_gone(self, on_gone: Callable[[], None] | None) -> bool:
        """Call `on_gone` when the client leaves; None cancels that. False if the client has left already."""
        ...

    def close_after_answer(self) -> None:
        """Serve no further request on this connection."""
        ...


@dataclass(slots=True)
class RequestContext:
    """Created by the server, if it is this service's own, else by the outermost middleware."""

    connection: Connection | None = None
    """None on any other ASGI server."""
    endpoint: Endpoint | None = None
    """None where the request is for no registered endpoint: pages, health checks, unknown paths."""
    lease: Lease | None = None
    """Taken by the server when it has read the headers, or later by the road; given back after the answer."""
    request_id: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    """The first of each name; names are in lower case."""
    body_ended: bool = False
    """Whether the whole body has been received, or there is none."""
    received_bytes: int = 0
    sent_bytes: int = 0
    status: int | None = None
    """Of the answer, once that has begun."""
    problem_code: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    """For the log: milliseconds of each stage, the batch's size, the number of images."""
    is_answered_by_server: bool = False
    """The server has answered and logged the request itself, because it broke off in its middle."""

    @property
    def errors(self) -> ErrorFormat:
        """The format of this request's errors."""
        return self.endpoint.errors if self.endpoint is not None else PROBLEMS

    @property
    def declared_bytes(self) -> int:
        """The Content-Length; 0 where there is none, or none that is a number (our own server refuses those)."""
        declared = self.headers.get(b"content-length", b"0")
        return int(declared) if declared.isdigit() else 0

    @property
    def has_body(self) -> bool:
        return b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"


def context_of(scope: MutableMapping[str, Any]) -> RequestContext:
    """The request's context, which is created if there is none yet."""
    context: RequestContext | None = scope.get(_KEY)
    if context is None:
        context = scope[_KEY] = RequestContext()
    return context


def first_of_each(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name. Of a header that comes twice the first counts."""
    return dict(reversed(headers))
