"""Requests that are still open when a shutdown's grace period ends: each is answered 503 `draining`."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Draining
from .middleware import refuse

_UNANSWERED = "The server is shutting down and could not answer this request in time."
# Whoever replaces this server needs a moment.
_RETRY_SECONDS = 2.0


class Drain:
    """The requests whose answers have not begun. Belongs to one event loop."""

    def __init__(self) -> None:
        self.is_over = False
        """The grace period has ended: nothing is answered any more but with 503."""
        self.open: set[asyncio.Task[object]] = set()

    def end(self) -> int:
        """End every open request, wherever it waits; returns how many there were."""
        self.is_over = True
        ended = list(self.open)
        for task in ended:
            task.cancel()
        return len(ended)


class EndOfGrace:
    """Answers the requests that `Drain.end` cancels, and those that begin later. Pure ASGI.

    It lies inside `EarlyAnswers`, so that a client in the middle of its upload receives the answer too. The server's
    own way, to cancel every task, would be a traceback and a plain-text 500 for each.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        drain = self.drain
        task = asyncio.current_task()
        assert task is not None

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                drain.open.discard(task)
            await send(message)

        if not drain.is_over:
            drain.open.add(task)
            try:
                await self.app(scope, receive, watched_send)
                return
            except asyncio.CancelledError:
                if not drain.is_over or task not in drain.open:
                    raise
                task.uncancel()
            finally:
                drain.open.discard(task)
        await refuse(Draining(_UNANSWERED, _RETRY_SECONDS), scope, receive, send)
