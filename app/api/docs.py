"""/, /docs and /openapi.json, with Swagger UI's files served from here: no CDN, no internet."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ..errors import NotFound
from .endpoint import Endpoints
from .native.examples import example_jpeg
from .native.schemas import Problem

router = APIRouter(include_in_schema=False)

_OWN = Path(__file__).parent / "static"
# Located without an import: only its files are needed.
_SWAGGER_PACKAGE = find_spec("fastapi_offline")
assert _SWAGGER_PACKAGE is not None
assert _SWAGGER_PACKAGE.origin is not None
_SWAGGER = Path(_SWAGGER_PACKAGE.origin).parent / "static"
# Every file that a page may load, by name: no client's path is ever joined to a folder. They are held in memory
# (1.5 MB): serving from files would add range requests, and errors that are not in the service's format.
_ASSETS = {
    file.name: (file.read_bytes(), media_type)
    for file, media_type in (
        (_OWN / "docs.css", "text/css"),
        (_OWN / "docs.js", "text/javascript"),
        (_OWN / "icon.svg", "image/svg+xml"),
        (_SWAGGER / "swagger-ui-bundle.js", "text/javascript"),
        (_SWAGGER / "swagger-ui.css", "text/css"),
    )
}
# Nothing from other origins. Swagger UI writes inline styles and shows images as data: URLs.
_POLICY = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
_PAGE = (_OWN / "docs.html").read_text(encoding="utf-8")
_DESCRIPTION = """
POST an image, get the most probable classes. With curl:

    curl -sS --data-binary @photo.jpg http://localhost:8000/predict

Every error is `application/problem+json` with a `code` to branch on and `retryable`; every answer carries
`X-Request-ID`, and predictions `Server-Timing` and `X-Batch-Size`.
"""


@router.head("/")
@router.get("/")
async def index(request: Request) -> Response:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")


@router.head("/docs")
@router.get("/docs")
async def docs() -> Response:
    return HTMLResponse(
        _PAGE,
        headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"},
    )


@router.get("/static/example.jpg")
async def example() -> Response:
    """The picture that the examples send."""
    return Response(example_jpeg(), media_type="image/jpeg")


@router.get("/static/{name}")
async def asset(name: str) -> Response:
    if name not in _ASSETS:
        raise NotFound()
    content, media_type = _ASSETS[name]
    headers = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=media_type, headers=headers)


def describe_openapi(app: FastAPI, endpoints: Endpoints) -> dict[str, Any]:
    """The OpenAPI document, with this service's error schema in place of FastAPI's validation error."""
    if app.openapi_schema is None:
        routes = [*(endpoint.document for endpoint in endpoints if endpoint.document), *app.routes]
        document = get_openapi(
            title=app.title, version=app.version, description=_DESCRIPTION, routes=routes, tags=_TAGS
        )
        schemas = document["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        app.openapi_schema = document
    return app.openapi_schema


_TAGS = [
    {"name": "predict", "description": "Images in, classes out."},
    {"name": "health", "description": "What is true of the service now."},
]
