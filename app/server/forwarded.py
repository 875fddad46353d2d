"""A client's address as proxies tell it, for requests that end before uvicorn's middleware reads their headers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .uvicorn_internals import ProxyHeadersMiddleware


class ForwardedClients:
    """Asks the middleware itself, so that it is the same address as in any other request."""

    def __init__(self, trusted: str) -> None:
        """`trusted` are the proxies that are believed, as RESNET_FORWARDED_ALLOW_IPS has them."""
        self._middleware = ProxyHeadersMiddleware(_nothing, trusted)

    def client_of(self, scope: Mapping[str, Any]) -> tuple[str, int] | None:
        """The client of a request whose `scope` has the socket's peer and the headers."""
        seen: dict[str, Any] = {
            "type": "http",
            "scheme": "http",
            "client": scope.get("client"),
            "headers": scope.get("headers", ()),
        }
        # It awaits nothing: one step is all of it.
        asked = self._middleware(seen, _nothing, _nothing)  # type: ignore[arg-type]
        with suppress(StopIteration):
            asked.send(None)
        client: tuple[str, int] | None = seen["client"]
        return client


async def _nothing(*_: object) -> None:
    pass
