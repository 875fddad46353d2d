"""From settings to a LoadedModel: the one object that holds everything that depends on a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .artifacts import open_served, timings_of
from .backends import Backend, BackendOptions, create_backend, null_checkpoint
from .backends.quantized import check_again, check_record
from .engine import Engine, InProcessEngine
from .errors import LoadCancelled, SettingError
from .metrics import Metrics
from .progress import Reporter
from .resources import available_cpus, available_memory_bytes
from .settings import Settings
from .types import ModelIdentity, Preprocessing

# What decoding holds at its peak, measured (docs/decoding.md) and rounded up: 12.2 for a CMYK JPEG that is turned
# upright, 21.0 for a 16-bit grey PNG, 20.6 for a WebP with transparency, which is laid over a background.
_JPEG_BYTES_A_PIXEL = 13
_BYTES_A_PIXEL = 24
# Images of the size that screens and most data sets have are accepted on the smallest machine too.
_FEWEST_MEGAPIXELS = 2.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """All that is to be known of a model but its engine: what one process can tell another."""

    identity: ModelIdentity
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    backend: str
    device: str
    source: str
    warnings: tuple[str, ...]
    score_count: int
    """Numbers that the network answers for an image. One can tell two classes apart."""

    @property
    def class_count(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class LoadedModel(ModelFacts):
    """What a request takes once, at admission, and keeps to its answer; a later swap is one assignment."""

    engine: Engine


def load_model(
    settings: Settings,
    metrics: Metrics,
    reporter: Reporter,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> LoadedModel:
    """Find, read and build the model that the settings name; its engine is not started yet. Blocks for seconds.

    Raises a `StartError` that says what is wrong and what to do.
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
    engine = InProcessEngine(
        backend,
        max_batch_size=None if settings.max_batch_size == "auto" else settings.max_batch_size,
        max_queue=settings.max_queue,
        max_queue_bytes=settings.max_queue_bytes,
        max_delay_seconds=settings.max_batch_delay_ms / 1e3,
        hang_seconds=settings.model_timeout_seconds,
        slo_seconds=None if settings.slo_p99_ms is None else settings.slo_p99_ms / 1e3,
        metrics=metrics,
        timings=timings_of(checkpoint.graph, threads, settings.max_batch_size),
    )
    # A fallback goes by its own name, never by the one that was meant for another model.
    name = checkpoint.architecture if checkpoint.is_fallback else settings.model_name or checkpoint.architecture
    identity = ModelIdentity(name, checkpoint.sha256[:8])
    metrics.model.labels(identity.name, identity.version, backend.name, backend.device).set(1)
    return LoadedModel(
        identity=identity,
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        engine=engine,
        backend=backend.name,
        device=backend.device,
        source=checkpoint.source,
        warnings=checkpoint.warnings,
        score_count=checkpoint.class_count,
    )


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How much is decoded at once: slots × the worst image never exceed the memory set aside for it."""

    slots: int
    """Images decoded at once."""
    spare: int
    """How many more the memory holds: what may replace a thread that hangs."""
    slot_bytes: int
    """What the worst image that the limits let in takes while it is decoded."""


def fit_image_limits(settings: Settings) -> Settings:
    """Lower limits of an image's size, where the memory for decoding is automatic and too small for the worst image.

    A process that reaches the memory limit of its container or service is killed. The size limits are lowered
    instead, in whole tenths of a megapixel. Reads files; blocks.
    """
    if settings.decode_memory_bytes != "auto":
        return settings
    memory = available_memory_bytes() // 2
    fitting = {
        name: max(memory // bytes_a_pixel // 100_000 / 10, _FEWEST_MEGAPIXELS)
        for name, bytes_a_pixel in (("max_megapixels_jpeg", _JPEG_BYTES_A_PIXEL), ("max_megapixels", _BYTES_A_PIXEL))
    }
    lower = {name: limit for name, limit in fitting.items() if limit < getattr(settings, name)}
    return settings.model_copy(update=lower) if lower else settings


def describe_fitted_limits(settings: Settings) -> str:
    """What `fit_image_limits` lowered, and how to have the limits that were set."""
    worst = max(settings.max_megapixels_jpeg * _JPEG_BYTES_A_PIXEL, settings.max_megapixels * _BYTES_A_PIXEL)
    return (
        f"This process may use {available_memory_bytes() / 1e6:,.0f} MB of memory, and half of it is for decoding: "
        f"JPEGs of over {settings.max_megapixels_jpeg:g} megapixels and other images of over "
        f"{settings.max_megapixels:g} are refused (image_too_large), because decoding one may take more than "
        f"{worst:,.0f} MB. Raise the memory limit (--memory, MemoryMax), or set RESNET_DECODE_MEMORY_BYTES "
        f"(--decode-memory-bytes)."
    )


def plan_decoding(settings: Settings) -> DecodePlan:
    """A slot for each CPU as far as the memory goes, or as many as the settings say. Reads files; blocks.

    Raises `SettingError` where the memory set aside does not hold the slots that were asked for, or not one. Without
    either setting there is always one slot, also on a machine whose half is smaller than the worst image
    (`fit_image_limits` lowers the limits there).
    """
    worst = max(settings.max_megapixels_jpeg * _JPEG_BYTES_A_PIXEL, settings.max_megapixels * _BYTES_A_PIXEL)
    slot_bytes = int(worst * 1e6)
    automatic = settings.decode_memory_bytes == "auto"
    memory = _count(settings.decode_memory_bytes, available_memory_bytes() // 2)
    fitting = max(memory // slot_bytes, 1 if automatic else 0)
    slots = _count(settings.decode_threads, max(1, min(available_cpus(), fitting)))
    if slots > fitting:
        asked = f"RESNET_DECODE_THREADS (--decode-threads) is {slots}" if settings.decode_threads != "auto" else ""
        raise SettingError(
            f"{asked or 'Not one image can be decoded'}: the largest image that the limits let in takes "
            f"{slot_bytes / 1e6:,.0f} MB while it is decoded, and the {memory / 1e6:,.0f} MB set aside "
            f"{'(half of what the service may use) ' if automatic else ''}hold {fitting or 'none'}. "
            f"{f'Set at most {fitting}, or set' if fitting else 'Set'} {slots * slot_bytes:,} bytes or more aside with "
            "RESNET_DECODE_MEMORY_BYTES (--decode-memory-bytes), or lower RESNET_MAX_MEGAPIXELS_JPEG and "
            "RESNET_MAX_MEGAPIXELS."
        )
    return DecodePlan(slots, fitting - slots, slot_bytes)


def _count(setting: int | str, automatic: int) -> int:
    return automatic if isinstance(setting, str) else setting


class Cancellation:
    """A flag that one thread sets and the loading thread looks at between steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    def is_cancelled(self) -> bool:
        return self._event.is_set()
