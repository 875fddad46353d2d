"""CORS, with refused preflights in the one error shape."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import MalformedRequest
from .error_answers import error_response

_REFUSED = (
    "The preflight request is refused: its origin, method or headers are not among those that pages may use here. "
    "RESNET_CORS_ORIGINS lists the origins; the methods are GET and POST."
)


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with this service's error bodies."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        return response if response.status_code < 400 else _RefusedPreflight(response)


class _RefusedPreflight(Response):
    """A refused preflight; its body is rendered when the request's scope is known."""

    def __init__(self, refusal: Response) -> None:
        super().__init__(status_code=refusal.status_code)
        self._cors = {
            name: value
            for name, value in refusal.headers.items()
            if name == "vary" or name.startswith("access-control-")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(MalformedRequest(_REFUSED), scope, headers=self._cors)(scope, receive, send)
