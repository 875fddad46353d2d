"""The client's address from proxies' headers, for requests that end before uvicorn's middleware reads them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .uvicorn_internals import ProxyHeadersMiddleware


class ForwardedClients:
    """Calls uvicorn's own middleware, so that the address is the same as for any other request."""

    def __init__(self, trusted: str) -> None:
        """`trusted` are the trusted proxies, as in RESNET_FORWARDED_ALLOW_IPS."""
        self._middleware = ProxyHeadersMiddleware(_nothing, trusted)

    def client_of(self, scope: Mapping[str, Any]) -> tuple[str, int] | None:
        """The client of a request; `scope` has the socket's peer and the headers."""
        seen: dict[str, Any] = {
            "type": "http",
            "scheme": "http",
            "client": scope.get("client"),
            "headers": scope.get("headers", ()),
        }
        # The middleware awaits nothing, so that one step runs all of it.
        asked = self._middleware(seen, _nothing, _nothing)  # type: ignore[arg-type]
        with suppress(StopIteration):
            asked.send(None)
        client: tuple[str, int] | None = seen["client"]
        return client


async def _nothing(*_: object) -> None:
    pass
