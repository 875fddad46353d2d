"""create_app(settings): wiring and lifespan, nothing else."""

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

from . import __version__
from .api import (
    AccessLog,
    Admission,
    BodyLimits,
    Cors,
    Drain,
    EarlyAnswers,
    EarlyRefusals,
    EndOfGrace,
    Guard,
    RequestContext,
    Service,
    ShortWay,
    State,
    Turns,
    UploadLimits,
    Uploads,
    describe_openapi,
    docs_router,
    errors_router,
    fixed_paths,
    health_router,
    predict_router,
    problem_handlers,
)
from .batching import SharedReservations
from .classifier import Classifier
from .errors import LoadCancelled, StartError
from .images import DecodeLimits, Decoder, decode, usable_kernel
from .images.process_decoder import ProcessDecoder
from .images.threads import ThreadDecoder
from .loading import Cancellation, LoadedModel, load_model, plan_decoding
from .logs import dropped_lines
from .metrics import Metrics
from .progress import LogReporter, Reporter
from .settings import Settings
from .threads import in_a_thread
from .types import Pixels, Preprocessing

logger = logging.getLogger(__name__)

# What brings images.
_ADMITTED = frozenset({"/predict", "/predict/batch"})


class Hooks:
    """What the process that runs the app wants to know. Without them, a failed load is logged and shown by /healthz."""

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
    """What the app has from the process that it runs in, where that is one of several."""

    metrics: Metrics
    reservations: SharedReservations
    processes: int
    """How many like this one share the machine."""
    keep_loaded: Callable[[Classifier, Hooks], Coroutine[Any, Any, None]]
    """Gives the classifier its model, and every later one; runs until the app ends, or until the hooks are told why
    it cannot go on."""
    until_presentable: Callable[[], Coroutine[Any, Any, None]]
    """Returns when connections may be accepted."""


def decode_limits(settings: Settings) -> DecodeLimits:
    """What is refused before it is decoded, as the settings say."""
    return DecodeLimits(
        max_pixels_jpeg=int(settings.max_megapixels_jpeg * 1e6),
        max_pixels=int(settings.max_megapixels * 1e6),
        max_side=settings.max_side,
        max_jpeg_scans=settings.max_jpeg_scans,
        max_jpeg_megapixel_scans=settings.max_jpeg_megapixel_scans,
    )


def decode_as_served(settings: Settings) -> Callable[[bytes, Preprocessing], Pixels]:
    """The decoding that these settings ask for, as a call that blocks: what a decoder does, without one."""
    limits = decode_limits(settings)
    return lambda data, preprocessing: decode(data, preprocessing, limits, settings.decode)


def build_classifier(settings: Settings, metrics: Metrics, shared: SharedReservations | None = None) -> Classifier:
    """A classifier without a model yet, as the settings size and limit it."""
    plan = plan_decoding(settings)
    limits = decode_limits(settings)

    def observe(image_format: str, seconds: float) -> None:
        metrics.decode_seconds.labels(image_format).observe(seconds)

    decoder: Decoder
    if settings.decoder == "processes":
        largest_file = max(settings.max_body_bytes, settings.max_batch_body_bytes)
        decoder = ProcessDecoder(
            limits,
            slots=plan.slots,
            memory_bytes=plan.slot_bytes + largest_file,
            buffer_bytes=largest_file,
            max_waiting=settings.max_queue,
            timeout_seconds=settings.decode_timeout_seconds,
            mode=settings.decode,
            observe=observe,
        )
    else:
        decoder = ThreadDecoder(
            limits,
            slots=plan.slots,
            spare=plan.spare,
            max_waiting=settings.max_queue,
            timeout_seconds=settings.decode_timeout_seconds,
            mode=settings.decode,
            observe=observe,
        )
    return Classifier(decoder, metrics, settings.max_queue, settings.longest_request_seconds, shared=shared)


def create_app(settings: Settings, hooks: Hooks | None = None, parts: Parts | None = None) -> FastAPI:
    """The service as an ASGI app. It answers from its first moment; the model loads in the background.

    Without `parts` the model is loaded into this process.
    """
    hooks = hooks or Hooks(LogReporter())
    metrics = parts.metrics if parts else Metrics()
    metrics.log_lines_dropped.set_function(dropped_lines)
    routers = (predict_router, health_router, docs_router, errors_router)
    access_log = AccessLog(metrics, fixed_paths(routers), settings.forwarded_allow_ips)
    drain = Drain()
    # Before the event loop runs: how much may be decoded at once is read from files.
    classifier = build_classifier(settings, metrics, parts.reservations if parts else None)
    turns = Turns(processes=parts.processes if parts else 1)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        cancellation = Cancellation()
        loading = asyncio.create_task(
            parts.keep_loaded(classifier, hooks)
            if parts
            else _load_and_watch(classifier, settings, metrics, hooks, cancellation)
        )
        watching = asyncio.create_task(metrics.look_often())
        try:
            if parts:
                await parts.until_presentable()
            yield {"service": Service(classifier, settings, metrics, turns)}
        finally:
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
        # Its target would be made of a Host header that the client chose.
        redirect_slashes=False,
        openapi_url="/openapi.json",
        exception_handlers=problem_handlers(),
        # Outermost first.
        middleware=[
            Middleware(RequestContext, log=access_log),
            *_cors(settings),
            Middleware(EarlyAnswers),
            Middleware(EndOfGrace, drain=drain),
            Middleware(Guard),
            Middleware(Admission, paths=_ADMITTED, classifier=classifier, turns=turns),
            Middleware(
                BodyLimits,
                default_bytes=settings.max_body_bytes,
                by_path={"/predict/batch": settings.max_batch_body_bytes},
            ),
            Middleware(
                Uploads,
                limits=UploadLimits(
                    open_uploads=settings.max_open_uploads,
                    held_bytes=settings.max_received_bytes,
                    seconds=settings.body_timeout_seconds,
                    bytes_per_second=settings.body_min_rate,
                    most_seconds=settings.body_timeout_max_seconds,
                ),
                metrics=metrics,
            ),
            Middleware(ShortWay),
        ],
    )
    app.state.classifier = classifier
    app.state.access_log = access_log
    app.state.early_refusals = EarlyRefusals(
        classifier.admit, access_log, turns, paths=_ADMITTED, has_cors=bool(settings.cors_origins)
    )
    app.state.drain = drain
    app.openapi = partial(describe_openapi, app)  # type: ignore[method-assign]
    for router in routers:
        app.include_router(router)
    # Now, and not for the first who asks: it takes longer than a request.
    app.openapi()
    return app


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


async def _load_and_watch(
    classifier: Classifier, settings: Settings, metrics: Metrics, hooks: Hooks, cancellation: Cancellation
) -> None:
    """Load, warm up, serve, until the engine is beyond repair: for ever, if all goes well.

    A failure is told once and leaves the service not ready and not alive.
    """
    try:
        model = await in_a_thread(
            lambda: load_model(settings, metrics, hooks.reporter, cancellation.is_cancelled), "load"
        )
        await classifier.decoder.start()
        classifier.model = model
        hooks.reporter.step(f"Warming up {model.identity.name} on {model.device}")
        await model.engine.start()
        resized = "compiled code" if await in_a_thread(usable_kernel, "load") else "Pillow, which takes longer"
        decoder = classifier.decoder
        logger.info(
            "Images are decoded by %d %s, %s, and resized by %s.",
            decoder.slots,
            settings.decoder,
            settings.decode,
            resized,
        )
    except LoadCancelled:
        return
    except Exception as error:
        classifier.failure = "The model could not be loaded; the server's log says why."
        if not isinstance(error, StartError):
            logger.exception("Loading failed unexpectedly.")
        hooks.on_failure(error)
        return
    hooks.on_ready(model)
    hooks.on_failure(await model.engine.until_lost())
