"""The images that one request carries, as every kind of body gives them."""

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
        """What the body carried, at least one image. Raises a `ServiceError` where it carried none."""
