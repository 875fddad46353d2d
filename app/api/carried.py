"""The images of one request, as the readers of all kinds of bodies return them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import ServiceError

ONE_IMAGE = "This path takes one image. Send several to POST /predict/batch."


@dataclass(frozen=True, slots=True)
class Images:
    """Each image's bytes, or why it has none; `top_k` where the body says one."""

    images: tuple[bytes | ServiceError, ...]
    top_k: int | None = None


class BodyReader(Protocol):
    """One body, read in pieces as they arrive, so that no call takes long and the encoded text is never held whole."""

    def feed(self, data: bytes) -> None:
        """The next piece. Raises the `ServiceError` that the body is answered with; then it is fed no more."""

    def finish(self) -> Images:
        """The body's images, at least one. Raises a `ServiceError` where it has none."""
