"""From settings to a LoadedModel: the one object that holds everything that depends on a checkpoint."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from . import checkpoints
from .backends import Backend, BackendOptions, create_backend, null_checkpoint
from .checkpoints import Checkpoint, CheckpointFile, OfflineDemo, PublishedName, PublishedWeights, Source
from .engine import Engine, InProcessEngine
from .errors import DownloadUnreachable, StartError
from .labels import choose_labels, labels_beside
from .metrics import Metrics
from .networks import count_classes
from .resources import available_cpus, available_memory_bytes
from .settings import Settings
from .types import ModelIdentity, Preprocessing

logger = logging.getLogger(__name__)

# What decoding holds at its peak: the image, and its copies on the way to RGB. A JPEG needs one for turning it upright;
# the other formats can have transparency, which is laid over a background.
_JPEG_BYTES_A_PIXEL = 12
_BYTES_A_PIXEL = 30


class Reporter(Protocol):
    """Who is told what loading is doing."""

    def step(self, text: str) -> None:
        """Something begins that may take a while."""
        ...

    def warn(self, text: str) -> None: ...

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        """Bytes so far, and in all if the server said."""
        ...


class LogReporter:
    """Loading's progress as log lines; of a download one line every tenth."""

    def __init__(self) -> None:
        self._tenths = 0

    def step(self, text: str) -> None:
        self._tenths = 0
        logger.info("%s …", text)

    def warn(self, text: str) -> None:
        logger.warning("%s", text)

    def downloading(self, name: str, received: int, expected: int | None) -> None:
        tenths = received * 10 // expected if expected else received >> 24
        if tenths > self._tenths:
            self._tenths = tenths
            of = f" of {expected / 1e6:.0f}" if expected else ""
            logger.info("Downloading %s: %.0f%s MB", name, received / 1e6, of)


class LoadCancelled(StartError):
    """The service was told to stop while it loaded."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a request takes once, at admission, and keeps to its answer; a later swap is one assignment."""

    identity: ModelIdentity
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    engine: Engine
    backend: str
    device: str
    source: str
    warnings: tuple[str, ...]

    @property
    def class_count(self) -> int:
        return len(self.labels)


def load_model(
    settings: Settings,
    metrics: Metrics,
    reporter: Reporter,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> LoadedModel:
    """Find, read and build the model that the settings name; its engine is not started yet. Blocks for seconds.

    Raises a `StartError` that says what is wrong and what to do.
    """
    checkpoint = null_checkpoint() if settings.backend == "null" else _load_checkpoint(settings, reporter, is_cancelled)
    if is_cancelled():
        raise LoadCancelled("Stopped while loading.")
    for warning in checkpoint.warnings:
        reporter.warn(warning)
    reporter.step(f"Building {checkpoint.architecture}")
    cpus = available_cpus()
    backend: Backend = create_backend(
        settings.backend,
        checkpoint,
        BackendOptions(settings.device, settings.precision, _count(settings.compute_threads, cpus)),
    )
    engine = InProcessEngine(
        backend,
        max_batch_size=None if settings.max_batch_size == "auto" else settings.max_batch_size,
        max_queue=settings.max_queue,
        max_delay_seconds=settings.max_batch_delay_ms / 1e3,
        metrics=metrics,
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
    )


def decode_threads(settings: Settings) -> int:
    """Images decoded at once: a thread for each CPU, as long as the largest images fit into half of the memory."""
    limits = (settings.max_megapixels_jpeg * _JPEG_BYTES_A_PIXEL, settings.max_megapixels * _BYTES_A_PIXEL)
    fitting = int(available_memory_bytes() / 2 / (max(limits) * 1e6))
    return _count(settings.decode_threads, max(1, min(available_cpus(), fitting)))


def _count(setting: int | str, automatic: int) -> int:
    return automatic if isinstance(setting, str) else setting


def _load_checkpoint(settings: Settings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    source: Source = checkpoints.locate(settings.weights)
    if isinstance(source, PublishedName):
        try:
            return _published(settings, source.name, reporter, is_cancelled)
        except DownloadUnreachable as error:
            if settings.weights_fallback != "offline-demo":
                raise
            warning = (
                f"{source.name} of {_published_architecture(settings)} could not be downloaded, so this serves the offline demo: "
                f"an EfficientNet-Lite0, which is not a ResNet-50. Put a checkpoint into model_weights/ to serve yours."
            )
            logger.debug("%s", error)
            demo = _offline_demo(settings, reporter)
            return replace(demo, is_fallback=True, warnings=(warning, *demo.warnings))
    if isinstance(source, OfflineDemo):
        return _offline_demo(settings, reporter)
    return _file(settings, source, reporter)


def _published(settings: Settings, name: str, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    reporter.step("Starting PyTorch")
    published = checkpoints.find_by_name(_published_architecture(settings), name)
    if is_cancelled():
        raise LoadCancelled("Stopped while loading.")
    path = download(settings, published, reporter, is_cancelled)
    return _file(settings, CheckpointFile(path), reporter)


def _published_architecture(settings: Settings) -> str:
    return "resnet50" if settings.architecture == "auto" else settings.architecture


def download(
    settings: Settings,
    published: PublishedWeights,
    reporter: Reporter,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """torchvision's file in the cache folder, downloaded unless it is there. Raises `DownloadError`."""
    url = published.url
    if settings.download_mirror:
        url = f"{settings.download_mirror.rstrip('/')}/{published.file_name}"
    return checkpoints.fetch(
        url,
        settings.cache_dir / "checkpoints",
        published.sha256_prefix,
        progress=lambda received, expected: reporter.downloading(published.file_name, received, expected),
        is_cancelled=is_cancelled,
    )


def _file(settings: Settings, source: CheckpointFile, reporter: Reporter) -> Checkpoint:
    reporter.step(f"Reading {source.path}")
    contents = checkpoints.read_checkpoint(source.path)
    decisions = checkpoints.decide(settings, contents)
    architecture = decisions.architecture.value
    class_count = count_classes(architecture, contents.weights)
    # A file beside published weights is somebody else's: their categories are known.
    beside = None if checkpoints.find_by_sha256(architecture, contents.sha256) else labels_beside(source.path.parent)
    labels = choose_labels(
        class_count, settings.labels or beside, contents.told.labels.value if contents.told.labels else None
    )
    return Checkpoint(
        weights=contents.weights,
        architecture=architecture,
        class_count=class_count,
        preprocessing=decisions.preprocessing.value,
        labels=labels,
        sha256=contents.sha256,
        source=str(source.path),
        warnings=tuple(checkpoints.warnings_of(contents, decisions, source.path.name)),
        switches=decisions.switches if architecture == "resnet50" else None,
    )


def _offline_demo(settings: Settings, reporter: Reporter) -> Checkpoint:
    reporter.step("Reading the offline demo")
    from .checkpoints.offline_demo import ARCHITECTURE, PREPROCESSING

    weights, sha256, path = checkpoints.read_offline_demo()
    class_count = count_classes(ARCHITECTURE, weights)
    labels = choose_labels(class_count, settings.labels)
    return Checkpoint(weights, ARCHITECTURE, class_count, PREPROCESSING, labels, sha256, str(path))


class Cancellation:
    """A flag that one thread sets and the loading thread looks at between steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    def is_cancelled(self) -> bool:
        return self._event.is_set()
