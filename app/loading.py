"""Loads a model from the settings: its checkpoint, backend and engine."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .artifacts import open_served, timings_of
from .backends import Backend, BackendOptions, create_backend, null_checkpoint
from .backends.quantized import check_again, check_record
from .batching import Schedule
from .engine import InProcessEngine
from .errors import LoadCancelled, SettingError
from .metrics import Metrics
from .pool import LoadedModel
from .progress import Reporter
from .settings import Settings
from .types import ModelIdentity


def load_model(
    settings: Settings,
    metrics: Metrics,
    reporter: Reporter,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> LoadedModel:
    """Find, read and build the model that the settings name; its engine is not started yet. Blocks for seconds.

    Raises a `StartError` with the cause and the remedy.
    """
    is_null = settings.backend == "null"
    checkpoint = null_checkpoint() if is_null else open_served(settings, reporter, is_cancelled)
    if is_cancelled():
        raise LoadCancelled("Stopped while loading.")
    for warning in checkpoint.warnings:
        reporter.warn(warning)
    check_record(checkpoint, settings.min_agreement)
    reporter.step(f"Building {checkpoint.architecture}")
    threads = settings.compute_thread_count
    backend: Backend = create_backend(
        settings.backend,
        checkpoint,
        BackendOptions(settings.device, settings.precision, threads),
    )
    check_again(checkpoint, backend, settings.min_agreement, reporter.step)
    if settings.max_batch_size != "auto" and settings.max_batch_size > backend.max_batch_size:
        raise SettingError(
            f"RESNET_MAX_BATCH_SIZE (--max-batch-size) cannot be {settings.max_batch_size}: the {backend.name} backend "
            f"on {backend.device} takes 1 to {backend.max_batch_size}, or auto."
        )
    # A fallback keeps its own name: the configured one was meant for another model.
    name = checkpoint.architecture if checkpoint.is_fallback else settings.model_name or checkpoint.architecture
    identity = ModelIdentity(name, checkpoint.sha256[:8])
    model_metrics = metrics.of_model(identity)
    engine = InProcessEngine(
        backend,
        max_batch_size=None if settings.max_batch_size == "auto" else settings.max_batch_size,
        max_queue=settings.max_queue,
        max_queue_bytes=settings.max_queue_bytes,
        max_delay_seconds=settings.max_batch_delay_ms / 1e3,
        hang_seconds=settings.model_timeout_seconds,
        slo_seconds=None if settings.slo_p99_ms is None else settings.slo_p99_ms / 1e3,
        metrics=model_metrics,
        timings=timings_of(checkpoint.graph, threads, settings.max_batch_size),
    )
    model_metrics.loaded(backend.name, backend.device)
    return LoadedModel(
        identity=identity,
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        engine=engine,
        schedule=Schedule(settings.max_queue, count_shed=metrics.count_shed),
        metrics=model_metrics,
        backend=backend.name,
        device=backend.device,
        source=checkpoint.source,
        warnings=checkpoint.warnings,
        score_count=checkpoint.class_count,
    )


class Cancellation:
    """A flag that one thread sets and the loading thread checks between steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    def is_cancelled(self) -> bool:
        return self._event.is_set()
