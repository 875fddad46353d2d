"""Receives a request's body piece by piece into a parser."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from ..errors import ServiceError
from .carried import Images
from .endpoint import Parser
from .leaving import ClientGone

# The size of a piece that is parsed without a pause: about half a millisecond.
_PIECE_BYTES = 128 * 1024


async def receive_body(receive: Receive, parser: Parser) -> Images:
    """Receive a body to its end, and parse each piece as it arrives. Raises the parser's error, or `ClientGone`.

    Parsing a piece takes about a millisecond on the event loop; a thread that parsed a whole body would hold the
    interpreter's lock for the whole parse. An error of the body is raised at its end: a client that is still sending
    may not see an earlier answer.
    """
    failure: ServiceError | None = None
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone()
        chunk: bytes = message.get("body", b"")
        has_more = message.get("more_body", False)
        for at in range(0, len(chunk), _PIECE_BYTES):
            if at:
                await asyncio.sleep(0)
            if failure is None:
                try:
                    parser.feed(chunk if len(chunk) <= _PIECE_BYTES else chunk[at : at + _PIECE_BYTES])
                except ServiceError as error:
                    # Without the traceback: its frames hold the body, and this frame, which holds the error.
                    failure = error.with_traceback(None)
    if failure is not None:
        raise failure
    return parser.finish()
