"""POST /predict and POST /predict/batch: their parsers, renderers and entries in the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Header, Query
from fastapi.routing import APIRoute

from ...errors import ServiceError, Unavailable
from ...settings import Settings
from ...types import Classification
from ..endpoint import Endpoint, ImageEndpoint, Results
from .examples import BATCH_REQUEST_BODY, REQUEST_BODY
from .parser import NativeParser
from .problems import PROBLEMS, problem
from .schemas import Answer, BatchAnswer, BatchPrediction, ModelBody, problem_responses

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


def native_endpoints(settings: Settings) -> list[Endpoint]:
    """This protocol's entries in the list of endpoints."""
    return [
        ImageEndpoint(
            path="/predict",
            max_body_bytes=settings.max_body_bytes,
            parser=partial(NativeParser, max_images=None),
            render=render_one,
            errors=PROBLEMS,
            document=_document("/predict", predict, "Classify one image", Answer, REQUEST_BODY),
        ),
        ImageEndpoint(
            path="/predict/batch",
            max_body_bytes=settings.max_batch_body_bytes,
            parser=partial(NativeParser, max_images=settings.max_images),
            render=render_batch,
            errors=PROBLEMS,
            document=_document(
                "/predict/batch", predict_batch, "Classify several images", BatchAnswer, BATCH_REQUEST_BODY
            ),
        ),
    ]


def render_one(results: Results) -> bytes | ServiceError:
    """The answer for one image, or its error."""
    (outcome,) = results.images
    return outcome if isinstance(outcome, ServiceError) else Answer.of(outcome).model_dump_json().encode()


def render_batch(results: Results) -> bytes | ServiceError:
    """Each image's predictions or problem; if every image has a 503, one 503 for the whole request."""
    first = results.images[0]
    if isinstance(first, Unavailable) and all(
        isinstance(outcome, Unavailable) and outcome.status == 503 for outcome in results.images
    ):
        return first
    answer = {
        "model": ModelBody.of(results.model).model_dump(),
        "results": [_of_batch(outcome, results) for outcome in results.images],
    }
    return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _of_batch(outcome: Classification | ServiceError, results: Results) -> dict[str, Any]:
    if isinstance(outcome, ServiceError):
        return problem(outcome, results.request_id, results.root_path)
    return BatchPrediction.of(outcome).model_dump()


# --- entries in the OpenAPI document: FastAPI reads them from signatures and docstrings


def predict(top_k: TopK = None, timeout_ms: TimeoutMs = None) -> None:
    """One JPEG, PNG, WebP, GIF or BMP: as the raw body, as the file of a form, or as base64 in JSON."""


def predict_batch(top_k: TopK = None, timeout_ms: TimeoutMs = None) -> None:
    """Several files of a form, or `images` in JSON. Each is admitted, queued and timed on its own."""


def _document(
    path: str, signature: Callable[..., None], summary: str, answer: Any, request_body: dict[str, Any]
) -> APIRoute:
    return APIRoute(
        path,
        signature,
        methods=["POST"],
        tags=["predict"],
        response_model=answer,
        summary=summary,
        responses=problem_responses(400, 408, 413, 415, 422, 500, 503, 504),
        openapi_extra={"requestBody": request_body},
    )
