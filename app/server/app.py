"""create_app(settings): the ASGI app's wiring and lifespan."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route

from .. import __version__
from ..api.access_log import AccessLog
from ..api.cors import Cors
from ..api.docs import describe_openapi
from ..api.docs import router as docs_router
from ..api.draining import Drain, EndOfGrace
from ..api.endpoint import Endpoints, ImageEndpoint
from ..api.error_answers import error_handlers
from ..api.error_reference import router as errors_router
from ..api.health import router as health_router
from ..api.leases import Leases
from ..api.middleware import EarlyAnswers, Guard, Requests
from ..api.paths import fixed_paths
from ..api.registry import all_endpoints
from ..api.road import Road
from ..api.service import Service
from ..api.turns import Turns
from ..api.uploads import BodyLimits, UploadLimits, Uploads
from ..classifier import Classifier
from ..decoding import build_decoder
from ..images import usable_kernel
from ..loading import Cancellation, load_model
from ..logs import dropped_lines
from ..metrics import Metrics
from ..pool import LoadedModel, serve_model
from ..progress import LogReporter, Reporter
from ..settings import Settings
from ..threads import in_a_thread
from .early_refusals import EarlyRefusals
from .forwarded import ForwardedClients

logger = logging.getLogger(__name__)


class Hooks:
    """Callbacks to the process that runs the app. Without them, a failed load is logged and shown by /healthz."""

    def __init__(
        self,
        reporter: Reporter,
        on_ready: Callable[[LoadedModel], None] = lambda model: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.reporter = reporter
        self.on_ready = on_ready
        self.on_failure = on_failure


@dataclass(frozen=True, slots=True)
class Parts:
    """Passed to the app by its process, if that is one of several."""

    metrics: Metrics
    processes: int
    """The number of such processes that share the machine."""
    keep_loaded: Callable[[Classifier, Hooks], Coroutine[Any, Any, None]]
    """Gives the classifier its models; runs until the app ends, or until it has reported a failure to the hooks."""
    until_presentable: Callable[[], Coroutine[Any, Any, None]]
    """Returns when connections may be accepted."""


def create_app(settings: Settings, hooks: Hooks | None = None, parts: Parts | None = None) -> FastAPI:
    """The service as an ASGI app. It answers at once; the model loads in the background.

    Without `parts` the model is loaded into this process.
    """
    hooks = hooks or Hooks(LogReporter())
    metrics = parts.metrics if parts else Metrics()
    metrics.log_lines_dropped.set_function(dropped_lines)
    endpoints = all_endpoints(settings)
    routers = (health_router, docs_router, errors_router)
    known_paths = fixed_paths(routers) | endpoints.fixed_paths()
    access_log = AccessLog(metrics, known_paths, ForwardedClients(settings.forwarded_allow_ips).client_of)
    drain = Drain()
    # Before the event loop runs: the number of images decoded at once depends on files that are read here.
    classifier = Classifier(build_decoder(settings, metrics), metrics, settings.longest_request_seconds)
    leases = Leases(classifier)
    turns = Turns(processes=parts.processes if parts else 1)
    service = Service(classifier, leases, settings, metrics, turns)
    uploads = Uploads(
        UploadLimits(
            open_uploads=settings.max_open_uploads,
            held_bytes=settings.max_received_bytes,
            seconds=settings.body_timeout_seconds,
            bytes_per_second=settings.body_min_rate,
            most_seconds=settings.body_timeout_max_seconds,
        ),
        metrics,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        cancellation = Cancellation()
        loading = asyncio.create_task(
            parts.keep_loaded(classifier, hooks)
            if parts
            else _serve_own_model(classifier, settings, metrics, hooks, cancellation)
        )
        watching = asyncio.create_task(metrics.look_often())
        try:
            if parts:
                await parts.until_presentable()
            yield
        finally:
            # No request is open any more, unless another server runs the app and does not wait for them.
            classifier.draining = True
            drain.end()
            cancellation.cancel()
            for task in (loading, watching):
                task.cancel()
            await asyncio.wait([loading, watching])
            await classifier.close()

    app = FastAPI(
        title="resnet-serve",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # The redirect's target would contain the client's Host header.
        redirect_slashes=False,
        openapi_url="/openapi.json",
        exception_handlers=error_handlers(),
        # Outermost first.
        middleware=[
            Middleware(Requests, endpoints=endpoints, leases=leases, log=access_log),
            *_cors(settings),
            Middleware(EarlyAnswers),
            Middleware(EndOfGrace, drain=drain),
            Middleware(Guard),
            Middleware(BodyLimits, uploads=uploads, default_bytes=settings.max_body_bytes),
        ],
    )
    app.state.service = service
    app.state.classifier = classifier
    app.state.access_log = access_log
    app.state.early_refusals = EarlyRefusals(endpoints, leases, access_log, turns, has_cors=bool(settings.cors_origins))
    app.state.drain = drain
    app.openapi = partial(describe_openapi, app, endpoints)  # type: ignore[method-assign]
    # First, because routes are searched in this order.
    app.router.routes[:0] = _roads(endpoints, service, uploads)
    for router in routers:
        app.include_router(router)
    # Now instead of at the first request for it: it takes longer than a request may.
    app.openapi()
    return app


def _roads(endpoints: Endpoints, service: Service, uploads: Uploads) -> list[BaseRoute]:
    return [
        Route(endpoint.path, Road(endpoint, service, uploads), methods=endpoint.methods)
        for endpoint in endpoints
        if isinstance(endpoint, ImageEndpoint)
    ]


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    exposed = ["X-Request-ID", "Server-Timing", "X-Batch-Size", "Retry-After"]
    return [
        Middleware(
            Cors,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=exposed,
        )
    ]


async def _serve_own_model(
    classifier: Classifier, settings: Settings, metrics: Metrics, hooks: Hooks, cancellation: Cancellation
) -> None:
    """Load the model that the settings name into this process and serve it, until its engine is beyond repair.

    A failure is reported once and leaves the service not ready and not alive.
    """
    resized = ""
    is_ready = False

    async def open_model() -> LoadedModel:
        nonlocal resized
        model = await in_a_thread(
            lambda: load_model(settings, metrics, hooks.reporter, cancellation.is_cancelled), "load"
        )
        try:
            await classifier.decoder.start()
            resized = "compiled code" if await in_a_thread(usable_kernel, "load") else "Pillow, which takes longer"
        except BaseException:
            await model.close()
            raise
        return model

    def on_loaded(model: LoadedModel) -> None:
        hooks.reporter.step(f"Warming up {model.identity.name} on {model.device}")

    def on_ready(model: LoadedModel) -> None:
        nonlocal is_ready
        is_ready = True
        decoder = classifier.decoder
        logger.info(
            "Images are decoded by %d %s, %s, and resized by %s.",
            decoder.slots,
            settings.decoder,
            settings.decode,
            resized,
        )
        hooks.on_ready(model)

    error = await serve_model(classifier.pool, open_model, on_loaded=on_loaded, on_ready=on_ready)
    if error is not None:
        if not is_ready:
            classifier.failure = "The model could not be loaded; the server's log says why."
        hooks.on_failure(error)
