"""The limits of a connection, and the callbacks for its refusals."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ServiceError
from .early_refusals import EarlyRefusals
from .open_files import OpenFiles


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits for each connection."""

    header_seconds: float
    """From the connection, or from a later request's first byte, to the end of its headers."""
    header_bytes: int
    header_count: int
    response_seconds: float
    """How long an answer may stay unread."""
    connections: int
    """The number of open connections above which only health checks are answered."""
    on_refusal: Callable[[ServiceError, MutableMapping[str, Any]], None] = lambda error, scope: None
    """Called for each request that ended in this layer, with the known part of its ASGI scope."""
    early_refusals: EarlyRefusals | None = None
    """Refuses requests by their headers."""
    open_files: OpenFiles = field(default_factory=OpenFiles)
