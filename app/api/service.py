"""The parts of the service that routes use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ..classifier import Classifier
from ..metrics import Metrics
from ..settings import Settings
from .leases import Leases
from .turns import Turns


@dataclass(frozen=True, slots=True)
class Service:
    classifier: Classifier
    leases: Leases
    settings: Settings
    metrics: Metrics
    turns: Turns


async def _service_of(request: Request) -> Service:
    """A coroutine although it awaits nothing: FastAPI runs plain functions on a thread."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service_of)]
