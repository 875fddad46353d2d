"""Requests that are still open when a shutdown's grace period ends: each is answered 503 `draining`."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Draining
from .error_answers import refuse
from .request_context import RequestContext, context_of

_UNANSWERED = "The server is shutting down and could not answer this request in time."
# Time for the replacement server to start.
_RETRY_SECONDS = 2.0


class Drain:
    """The open requests. Belongs to one event loop."""

    def __init__(self) -> None:
        self.is_over = False
        """Whether the grace period has ended. From then on every request is answered 503."""
        self.open: dict[asyncio.Task[object], RequestContext] = {}

    def end(self) -> int:
        """Cancel every request whose answer has not begun; returns their number."""
        self.is_over = True
        ended = [task for task, context in self.open.items() if context.status is None]
        for task in ended:
            task.cancel()
        return len(ended)


class EndOfGrace:
    """Answers the requests that `Drain.end` cancels, and those that begin later. Pure ASGI.

    It lies inside `EarlyAnswers`, so that a client in the middle of its upload also receives the answer. A
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
