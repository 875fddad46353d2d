"""POST /predict and POST /predict/batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..classifier import Admitted, Classifier
from ..errors import InvalidParameter, Overloaded, ServiceError, Unavailable
from ..pool import LoadedModel
from ..types import Classification
from .access_log import CLIENT_GONE
from .bodies import read_many, read_one
from .carried import Images
from .examples import BATCH_REQUEST_BODY, REQUEST_BODY
from .paths import own_path
from .problems import answer_to, problem
from .schemas import Answer, BatchAnswer, BatchPrediction, ModelBody, problem_responses
from .service import Service, service_of

T = TypeVar("T")


router = APIRouter(tags=["predict"])

TopK = Annotated[
    int | None,
    Query(ge=1, description="How many classes to answer with; at most as many as the model has.", examples=[5]),
]
TimeoutMs = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms",
        ge=1,
        description="Deadline in milliseconds from the last body byte; it can only shorten the server's own.",
    ),
]


@router.post(
    "/predict",
    response_model=Answer,
    summary="Classify one image",
    responses=problem_responses(400, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def predict(request: Request, top_k: TopK = None, timeout_ms: TimeoutMs = None) -> Response:
    """One JPEG, PNG, WebP, GIF or BMP: as the raw body, as the file of a form, or as base64 in JSON."""
    service, admitted = service_of(request), _admitted(request)
    model = admitted.model
    carried = await read_one(request)
    admitted.body_has_ended()
    deadline = _deadline(service, timeout_ms)
    wanted = _top_k(service.classifier, model, top_k, carried)
    image = carried.images[0]
    assert isinstance(image, bytes)
    try:
        classification = await _unless_gone(request, service.classifier.classify(model, image, wanted, deadline))
    except Overloaded:
        await asyncio.sleep(service.turns.wait_seconds())
        raise
    if classification is None:
        return _nobody_there(request)
    return Response(
        Answer.of(classification).model_dump_json(),
        headers=_stages(request, [classification]),
        media_type="application/json",
    )


@router.post(
    "/predict/batch",
    response_model=BatchAnswer,
    summary="Classify several images",
    responses=problem_responses(400, 408, 413, 415, 422, 500, 503, 504),
    openapi_extra={"requestBody": BATCH_REQUEST_BODY},
)
async def predict_batch(request: Request, top_k: TopK = None, timeout_ms: TimeoutMs = None) -> Response:
    """Several files of a form, or `images` in JSON. Each is admitted, queued and timed on its own."""
    service, admitted = service_of(request), _admitted(request)
    model = admitted.model
    carried = await read_many(request, service.settings.max_images)
    admitted.body_has_ended()
    batch = object() if len(carried.images) > 1 else None
    deadline = _deadline(service, timeout_ms)
    wanted = _top_k(service.classifier, model, top_k, carried)

    async def one(image: bytes | ServiceError) -> Classification | ServiceError:
        if isinstance(image, ServiceError):
            return image
        try:
            return await service.classifier.classify(model, image, wanted, deadline, batch)
        except ServiceError as error:
            return error

    async def all_of_them() -> list[Classification | ServiceError]:
        return await asyncio.gather(*[one(image) for image in carried.images])

    results = await _unless_gone(request, all_of_them())
    if results is None:
        return _nobody_there(request)
    if all(isinstance(result, Unavailable) and result.status == 503 for result in results):
        assert isinstance(results[0], Unavailable)
        raise results[0]
    bodies = [
        problem(result, request.scope) if isinstance(result, ServiceError) else BatchPrediction.of(result).model_dump()
        for result in results
    ]
    answered = [result for result in results if isinstance(result, Classification)]
    return JSONResponse(
        {"model": ModelBody.of(model.identity).model_dump(), "results": bodies},
        headers=_stages(request, answered),
    )


class ShortWay:
    """Takes a `POST /predict` that sends no parameter straight to its endpoint: pure ASGI, inside all other middleware.

    FastAPI's routing and its checks of parameters that are not there are a seventh of what answering costs the event
    loop, without decoding and the model. What carries a parameter takes the usual way, and both answer alike.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._route = next(route for route in router.routes if getattr(route, "path", "") == "/predict")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_plain(scope):
            await self.app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response = await predict(request)
        except (ServiceError, ClientDisconnect) as error:
            response = await answer_to(request, error)
        await response(scope, receive, send)

    def _is_plain(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and own_path(scope) == "/predict"
            and not scope["query_string"]
            and all(name != b"x-request-timeout-ms" for name, _ in scope["headers"])
        )


def _admitted(request: Request) -> Admitted:
    """What the request got at admission, before its body was read."""
    admitted: Admitted = request.scope["admitted"]
    return admitted


def _deadline(service: Service, timeout_ms: int | None) -> float:
    """An absolute monotonic time, counted from now: the body has just been read."""
    own = service.settings.longest_request_seconds
    return time.monotonic() + (min(own, timeout_ms / 1e3) if timeout_ms else own)


def _top_k(classifier: Classifier, model: LoadedModel, query: int | None, carried: Images) -> int:
    if query is not None and carried.top_k is not None and query != carried.top_k:
        raise InvalidParameter("top_k in the query contradicts top_k in the body.")
    return classifier.resolve_top_k(model, carried.top_k if query is None else query)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result, or None where the client left first: then the work is cancelled and leaves every queue."""
    this = asyncio.current_task()
    assert this is not None
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        this.cancel()

    tell_when_gone: Callable[[Callable[[], None] | None], bool] = request.scope["tell_when_gone"]
    if not tell_when_gone(leave):
        work.close()
        return None
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and not this.uncancel():
            return None
        raise
    finally:
        tell_when_gone(None)


def _nobody_there(request: Request) -> Response:
    """The server drops this answer: its connection is closed. 499 is what a log calls it."""
    request.scope["problem_code"] = "client_gone"
    return Response(status_code=CLIENT_GONE)


def _stages(request: Request, classifications: list[Classification]) -> dict[str, str]:
    """`Server-Timing` in milliseconds and `X-Batch-Size`; of several images, each stage's longest and the largest.

    The request's log line has them too.
    """
    if not classifications:
        return {}
    stages = {
        "decode": max(each.timings.decode_seconds for each in classifications) * 1e3,
        "queue": max(each.timings.queue_seconds for each in classifications) * 1e3,
        "inference": max(each.timings.inference_seconds for each in classifications) * 1e3,
    }
    batch_size = max(each.batch_size for each in classifications)
    request.scope["stages"] = {f"{stage}_ms": round(ms, 2) for stage, ms in stages.items()} | {
        "batch_size": batch_size,
        "images": len(classifications),
    }
    return {
        "Server-Timing": ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in stages.items()),
        "X-Batch-Size": str(batch_size),
    }
