"""The limits of a connection, and where its refusals are reported."""

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
    """How long an answer may lie unread."""
    connections: int
    """Open at once; past it only health checks are answered."""
    on_refusal: Callable[[ServiceError, MutableMapping[str, Any]], None] = lambda error, scope: None
    """Called for each request that ended here, with the known part of its ASGI scope."""
    early_refusals: EarlyRefusals | None = None
    """Requests that are refused by their headers."""
    open_files: OpenFiles = field(default_factory=OpenFiles)
