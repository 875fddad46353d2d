"""GET /healthz, /readyz and /metrics: liveness, readiness and Prometheus metrics."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..errors import Draining, EngineUnavailable, NotReady, Unavailable
from .error_answers import error_response
from .native.problems import PROBLEMS
from .native.schemas import Health, ModelBody, problem_responses
from .service import Service, ServiceDep

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=Health, summary="Is the process well?", responses=problem_responses(503))
async def healthz(request: Request, service: ServiceDep) -> Response:
    """Liveness: 200 while it loads and while it can serve, 503 only when a restart is the cure."""
    state = service.classifier.state()
    if state.phase == "failed":
        return _not_well(request, EngineUnavailable(state.reason), state.phase)
    return JSONResponse(_health(service).model_dump())


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Health, summary="Does it serve?", responses=problem_responses(503))
async def readyz(request: Request, service: ServiceDep) -> Response:
    """Readiness: 200 only when the model is loaded and warm and the service is not shutting down."""
    state = service.classifier.state()
    if state.ready:
        return JSONResponse(_health(service).model_dump())
    kinds: dict[str, type[Unavailable]] = {"loading": NotReady, "warming": NotReady, "draining": Draining}
    error = kinds.get(state.phase, EngineUnavailable)(state.reason, retry_after_seconds=2.0)
    return _not_well(request, error, state.phase)


def _not_well(request: Request, error: Unavailable, phase: str) -> Response:
    return error_response(error, request.scope, partial(PROBLEMS.body, state=phase))


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(service: ServiceDep) -> Response:
    """Counters and histograms in Prometheus' text format."""
    return Response(await service.metrics.rendered(), media_type=service.metrics.content_type)


def _health(service: Service) -> Health:
    state = service.classifier.state()
    model = service.classifier.model
    return Health(
        status="ok",
        state=state.phase,
        ready=state.ready,
        reason=state.reason,
        model=ModelBody.of(model.identity) if model else None,
        backend=model.backend if model else None,
        device=model.device if model else None,
        decode=service.settings.decode,
        warnings=list(model.warnings) if model else [],
        version=__version__,
    )
