"""The reading side of an HTTP connection: parsing, with limits on heads and framing, without upgrades."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ..errors import HeadersTooLarge, MalformedRequest, ServiceError
from .heads import HeadLimits, HeadWatch
from .last_answer import Discard
from .refused_request import RefusedRequest
from .uvicorn_internals import (
    HIGH_WATER_LIMIT,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpToolsProtocol,
)

NOT_HTTP = "This is not a valid HTTP/1.1 request."
FRAMING_HEADERS = (b"content-length", b"transfer-encoding")


class ReadingProtocol(HttpToolsProtocol):
    """uvicorn's protocol with this service's limits; `HttpProtocol` adds the answers.

    A request reaches the app only when its headers are complete. Earlier errors are found here: silent and slow
    clients, endless headers, bytes that are not HTTP.
    """

    _discard: Discard
    """Takes the data that follows the connection's last answer."""

    def __init__(self, *arguments: Any, limits: HeadLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._heads = HeadWatch(self.loop, limits, lambda: self.flow.read_paused, self._head_is_late)
        # The error that ended the parsing.
        self._refusal: ServiceError | None = None
        self._is_refused = False
        self._repeats_head = False
        # The request that was refused by its headers, until its body has ended and its answer has been sent.
        self._early: RefusedRequest | None = None

    @abstractmethod
    def _refuse(self, error: ServiceError) -> None:
        """Read no more, and answer with an error."""

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._discard.drop(data)
            return
        self._heads.piece_came()
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except HttpParserError:
            self.send_400_response("")
        if not self._is_refused:
            self._heads.piece_parsed()
        self._tell_app()
        if self._heads.in_message and not self._is_refused and self._heads.has_too_much_framing(len(data)):
            self._refuse(HeadersTooLarge())

    def _feed(self, data: bytes) -> None:
        """Parse. A request for an upgrade (WebSocket, or HTTP/2 as curl asks for it) is answered without one.

        The parser assumes that the upgrade is granted and ends with the request's head; the bytes after the head are
        given to a new parser.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                framing = [(name, value) for name, value in self.headers if name in FRAMING_HEADERS]
                self.parser = HttpRequestParser(self)
                if framing:
                    self._repeats_head = True
                    lines = b"".join(b"%b: %b\r\n" % header for header in framing)
                    self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")

    def on_message_begin(self) -> None:
        if self._repeats_head or self._is_refused:
            return
        # If this request arrived together with a refused one, the end of that one has set the timer.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._heads.message_began()

    def on_url(self, url: bytes) -> None:
        if self._repeats_head or self._is_refused:
            return
        self._count(len(url), 0)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._repeats_head or self._is_refused:
            return
        self._count(len(name) + len(value) + 4, len(self.headers) + 1)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        # Called for each chunk, and a piece of data may have 40,000: the rest is done once a piece, in `_tell_app`.
        self._heads.body_bytes += len(body)
        if self._early is None and not self._is_refused and not self.cycle.response_complete:
            self.cycle.body += body

    def _tell_app(self) -> None:
        """Wake the app, because more of its body has arrived. Pause reading if it has enough."""
        if self._early is None and self.cycle is not None and self.cycle.body:
            if len(self.cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def _head_is_late(self, error: ServiceError | None) -> None:
        if self.transport.is_closing():
            return
        if error is None:
            self.transport.close()
        else:
            self._refuse(error)

    def _count(self, size: int, header_count: int) -> None:
        try:
            self._heads.add(size, header_count)
        except HeadersTooLarge as error:
            self._raise(error)

    def _raise(self, error: ServiceError) -> None:
        """End the parsing: the parser reports an error, and uvicorn then calls `send_400_response`."""
        self._refusal = error
        raise HttpParserError(error.code)

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or MalformedRequest(NOT_HTTP))
