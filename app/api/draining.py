"""Requests that are still open when a shutdown's grace period ends: each is answered 503 `draining`."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Draining
from .error_answers import refuse
from .request_context import RequestContext, context_of

_UNANSWERED = "The server is shutting down and could not answer this request in time."
# The server that replaces this one needs a moment.
_RETRY_SECONDS = 2.0


class Drain:
    """The requests that are open. Belongs to one event loop."""

    def __init__(self) -> None:
        self.is_over = False
        """The grace period has ended: nothing is answered any more but with 503."""
        self.open: dict[asyncio.Task[object], RequestContext] = {}

    def end(self) -> int:
        """End every request whose answer has not begun, wherever it waits; returns how many there were."""
        self.is_over = True
        ended = [task for task, context in self.open.items() if context.status is None]
        for task in ended:
            task.cancel()
        return len(ended)


class EndOfGrace:
    """Answers the requests that `Drain.end` cancels, and those that begin later. Pure ASGI.

    It lies inside `EarlyAnswers`, so that a client in the middle of its upload receives the answer too. A
    server that cancels every task itself answers each with a plain-text 500, and logs a traceback.
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

        context = context_of(scope)
        if not drain.is_over:
            drain.open[task] = context
            try:
                await self.app(scope, receive, send)
                return
            except asyncio.CancelledError:
                if not drain.is_over or context.status is not None:
                    raise
                task.uncancel()
            finally:
                drain.open.pop(task, None)
        await refuse(Draining(_UNANSWERED, _RETRY_SECONDS), scope, receive, send)
