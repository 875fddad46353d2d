"""What a door needs of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from ..classifier import Classifier
from ..metrics import Metrics
from ..settings import Settings
from .turns import Turns


@dataclass(frozen=True, slots=True)
class Service:
    classifier: Classifier
    settings: Settings
    metrics: Metrics
    turns: Turns


class State(TypedDict):
    """What the lifespan yields; Starlette gives each request a shallow copy as `request.state`."""

    service: Service


def service_of(request: Request) -> Service:
    service: Service = request.state.service
    return service


async def _service_of(request: Request) -> Service:
    """A coroutine, though it awaits nothing: FastAPI calls any other function on a thread of its own."""
    return service_of(request)


ServiceDep = Annotated[Service, Depends(_service_of)]
