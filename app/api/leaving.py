"""Cancels a request's work when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from .request_context import Connection

T = TypeVar("T")


class ClientGone(Exception):
    """The client has left; the answer has no reader."""


async def unless_gone(connection: Connection | None, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If the client leaves first, the work is cancelled and `ClientGone` is raised.

    The request's body must have been received. This service's own server reports at once that the client has left; on
    any other ASGI server a task waits for `http.disconnect`.
    """
    this = asyncio.current_task()
    assert this is not None
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        this.cancel()

    watch = None if connection is not None else asyncio.create_task(_wait_for_disconnect(receive, leave))
    if connection is not None and not connection.tell_when_gone(leave):
        work.close()
        raise ClientGone()
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and not this.uncancel():
            raise ClientGone() from None
        raise
    finally:
        if connection is not None:
            connection.tell_when_gone(None)
        elif watch is not None:
            watch.cancel()


async def _wait_for_disconnect(receive: Receive, leave: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leave()
