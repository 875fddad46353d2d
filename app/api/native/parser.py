"""The native parser: `top_k` and `X-Request-Timeout-Ms`, then the body as raw bytes, a form or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from starlette.datastructures import QueryParams
from starlette.types import Scope

from ...errors import InvalidParameter, MalformedRequest, ServiceError
from ..carried import BodyReader, Images
from ..error_texts import parameter_fault
from .bodies import body_reader

_Value = TypeVar("_Value")

_POSITIVE = TypeAdapter(Annotated[int | None, Field(ge=1)])
_NO_IMAGE = "The request carries no image. Send its bytes as the body, or as a form's file, or in JSON."


class NativeParser:
    """Reads one request. `max_images` is None if it has to carry one image."""

    def __init__(self, scope: Scope, headers: Mapping[bytes, bytes], max_images: int | None) -> None:
        """Raises `InvalidParameter` for a parameter that is out of range or not a number."""
        query: bytes = scope["query_string"]
        self._top_k = _top_k_of(query) if query else None
        timeout = headers.get(b"x-request-timeout-ms")
        timeout_ms = None if timeout is None else _positive("X-Request-Timeout-Ms", timeout.decode("latin-1"))
        self.timeout_seconds = timeout_ms / 1e3 if timeout_ms else None
        self._content_type = headers.get(b"content-type", b"").decode("latin-1")
        self._max_images = max_images
        self._reader: BodyReader | None = None

    def feed(self, data: bytes) -> None:
        try:
            if self._reader is None:
                self._reader = body_reader(self._content_type, self._max_images)
            self._reader.feed(data)
        except ServiceError:
            self._reader = None  # frees the bytes that it has read: the rest of the body may be long
            raise

    def finish(self) -> Images:
        """Raises `MalformedRequest`, `InvalidBase64`, `InvalidParameter` or another error of the body."""
        reader = self._reader or body_reader(self._content_type, self._max_images)
        carried = reader.finish()
        if self._max_images is None:
            if isinstance(error := carried.images[0], ServiceError):
                raise error
            if not carried.images[0]:
                raise MalformedRequest(_NO_IMAGE)
        if self._top_k is None:
            return carried
        if carried.top_k not in (None, self._top_k):
            raise InvalidParameter("top_k in the query contradicts top_k in the body.")
        return Images(carried.images, self._top_k)


def _top_k_of(query: bytes) -> int | None:
    values = {_positive("top_k", sent) for sent in QueryParams(query).getlist("top_k")}
    if len(values) > 1:
        raise InvalidParameter("The query has two top_k that contradict each other.")
    return values.pop() if values else None


def _positive(name: str, sent: str | None) -> int | None:
    """A whole number from 1, parsed as FastAPI would: the OpenAPI document is FastAPI's."""
    try:
        return _POSITIVE.validate_python(sent)
    except ValidationError as error:
        message = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InvalidParameter(parameter_fault(name, message)) from None
