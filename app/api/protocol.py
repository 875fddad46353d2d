"""uvicorn's HTTP protocol, with its one plain-text error in the service's own shape."""

from __future__ import annotations

import json
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import MalformedRequest
from .problems import MEDIA_TYPE, problem


class HttpProtocol(HttpToolsProtocol):
    """Answers what is not HTTP with problem+json; the request never became one, so no route sees it."""

    def _unsupported_upgrade_warning(self) -> None:
        """Who asks for a WebSocket is answered as if they had not; uvicorn would tell the operator to install one."""

    def send_400_response(self, msg: str) -> None:
        request_id = uuid4().hex
        body = json.dumps(problem(MalformedRequest("This is not a valid HTTP/1.1 request."), request_id)).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
