"""The images of one request, as the readers of all kinds of bodies return them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import ServiceError

ONE_IMAGE = "This path takes one image. Send several to POST /predict/batch."


@dataclass(frozen=True, slots=True)
class Images:
    """Each image's bytes or its error, and `top_k` if the body has one."""

    images: tuple[bytes | ServiceError, ...]
    top_k: int | None = None


class BodyReader(Protocol):
    """Reads one body in pieces as they arrive: each call is short, and the encoded text is never held as a whole."""

    def feed(self, data: bytes) -> None:
        """Read the next piece. Raises the `ServiceError` to answer the body with; no piece may follow that."""

    def finish(self) -> Images:
        """The body's images, at least one. Raises a `ServiceError` if it has none."""
