"""The one list of all endpoints: each protocol's entries."""

from __future__ import annotations

from ..settings import Settings
from .endpoint import Endpoints
from .native import native_endpoints


def all_endpoints(settings: Settings) -> Endpoints:
    """Every endpoint that these settings serve."""
    return Endpoints(native_endpoints(settings))
