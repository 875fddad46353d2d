"""From settings to a Checkpoint: which weights, what is in them, and every decision that serving them needs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from . import checkpoints
from .checkpoints import (
    Checkpoint,
    CheckpointFile,
    Contents,
    Decision,
    Decisions,
    OfflineDemo,
    PublishedName,
    PublishedWeights,
    Source,
)
from .errors import MAY_FALL_BACK, StartError, printable
from .labels import Labels, are_labels_of, choose_labels, labels_beside, labels_not_used
from .networks import count_classes
from .settings import ENV_PREFIX, CheckpointSettings

logger = logging.getLogger(__name__)


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
class Found:
    """Which weights the settings mean, on this machine and not read yet."""

    source: CheckpointFile | OfflineDemo
    fallback_warning: str | None = None
    """Of weights that stand in for others: what could not be had."""


LookUp = Callable[[str, str], PublishedWeights]
"""Architecture, name → torchvision's weights of that name."""
Fetch = Callable[[PublishedWeights], Path]
"""Published weights → their file in the cache folder. Raises `DownloadError`."""


def open_checkpoint(settings: CheckpointSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    """The checkpoint that the settings name, read and settled; where that is allowed, the fallback for it.

    Raises a `StartError` that says what is wrong and what to do. Blocks.
    """
    return read_found(settings, find_weights(settings, reporter, is_cancelled), reporter)


def find_weights(
    settings: CheckpointSettings,
    reporter: Reporter,
    is_cancelled: Callable[[], bool],
    look_up: LookUp = checkpoints.find_by_name,
    fetch: Fetch | None = None,
) -> Found:
    """The weights that the settings name, downloaded where they must be; where that is allowed, the fallback for them.

    `fetch` is given where another process downloads. Imports torch only where `look_up` does. Raises as
    `open_checkpoint` does. Blocks.
    """
    source: Source = checkpoints.locate(settings.weights)
    if not isinstance(source, PublishedName):
        return Found(source)
    try:
        if look_up is checkpoints.find_by_name:
            reporter.step("Starting PyTorch")
        published = look_up(published_architecture(settings), source.name)
        if is_cancelled():
            raise LoadCancelled("Stopped while loading.")
        file = fetch(published) if fetch else download(settings, published, reporter, is_cancelled)
        return Found(CheckpointFile(file))
    except MAY_FALL_BACK as error:
        if settings.weights_fallback != "offline-demo":
            raise
        logger.warning("%s", error)
        return Found(
            OfflineDemo(),
            f"{source.name} of {published_architecture(settings)} could not be downloaded, so this serves the "
            f"offline demo: an EfficientNet-Lite0, which is not a ResNet-50. Put a checkpoint into model_weights/ "
            f"to serve yours.",
        )


def read_found(settings: CheckpointSettings, found: Found, reporter: Reporter) -> Checkpoint:
    """What was found, read and settled. Raises as `open_checkpoint` does. Blocks."""
    if isinstance(found.source, CheckpointFile):
        return _file(settings, found.source, reporter)
    demo = _offline_demo(settings, reporter)
    if found.fallback_warning is None:
        return demo
    return replace(demo, is_fallback=True, warnings=(found.fallback_warning, *demo.warnings))


def published_architecture(settings: CheckpointSettings) -> str:
    """Whose published weights are meant: a ResNet-50's, unless the setting names another."""
    return "resnet50" if settings.architecture == "auto" else settings.architecture


def download(
    settings: CheckpointSettings,
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
        setting=f"{ENV_PREFIX}DOWNLOAD_MIRROR" if settings.download_mirror else None,
    )


@dataclass(frozen=True, slots=True)
class Examined:
    """A checkpoint file with everything settled: what `inspect` shows and `convert` writes."""

    path: Path
    contents: Contents
    decisions: Decisions
    class_count: int
    labels: Decision[Labels]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        architecture = self.decisions.architecture.value
        return Checkpoint(
            weights=self.contents.weights,
            architecture=architecture,
            class_count=self.class_count,
            preprocessing=self.decisions.preprocessing.value,
            labels=self.labels.value,
            sha256=self.contents.sha256,
            source=str(self.path),
            warnings=self.warnings,
            switches=None if self.contents.graph else self.decisions.switches_of(architecture),
            graph=self.contents.graph,
            activation=self.decisions.activation.value,
        )


def examine(settings: CheckpointSettings, path: Path) -> Examined:
    """Read the checkpoint at `path`, check that it fits its network, and settle what it leaves open.

    Raises a `StartError` in one line: `CheckpointError`, `LabelsError` or `SettingError`.
    """
    contents = checkpoints.read_checkpoint(path, settings.max_checkpoint_bytes, settings.onnx_output)
    decisions = checkpoints.decide(settings, contents)
    architecture = decisions.architecture.value
    class_count = (
        contents.graph.class_count
        if contents.graph
        else count_classes(architecture, contents.weights, decisions.switches_of(architecture))
    )
    decisions = decisions.with_classes(class_count)
    labels, label_notes = _labels(settings, contents, class_count, architecture, path)
    warnings = (
        *checkpoints.warnings_of(contents, decisions, path.name),
        *_warnings_of_labels(contents, labels, class_count, path),
    )
    notes = (*contents.notes, *checkpoints.notes_of(contents, decisions), *label_notes)
    # Both may have names that stand in the file, and are shown on a terminal.
    shown = (tuple(map(printable, each)) for each in (warnings, notes))
    return Examined(path, contents, decisions, class_count, labels, *shown)


def _labels(
    settings: CheckpointSettings, contents: Contents, class_count: int, architecture: str, path: Path
) -> tuple[Decision[Labels], tuple[str, ...]]:
    """The setting's file, the checkpoint's own word, a file beside it, ImageNet's, or the indices; and notes."""
    if settings.labels is not None:
        return Decision(choose_labels(class_count, settings.labels), f"{ENV_PREFIX}LABELS"), ()
    home = checkpoints.home_of(path)
    told = contents.told.labels
    if told is not None and are_labels_of(told.value, class_count):
        return told, tuple(labels_not_used(home, told.value, told.source))
    source = "ImageNet's, by their number" if class_count in (1000, 1001) else "the class indices"
    # A file beside published weights is somebody else's: their categories are known.
    if checkpoints.find_by_sha256(architecture, contents.sha256) is not None:
        labels = Decision(choose_labels(class_count, None), source)
        return labels, tuple(labels_not_used(home, labels.value, "torchvision, whose weights these are,"))
    beside = labels_beside(home, class_count)
    return Decision(choose_labels(class_count, beside), beside.name if beside else source), ()


def _warnings_of_labels(contents: Contents, labels: Decision[Labels], class_count: int, path: Path) -> tuple[str, ...]:
    """A sentence where the checkpoint names another number of classes than it has."""
    told = contents.told.labels
    if told is None or are_labels_of(told.value, class_count) or labels.source == f"{ENV_PREFIX}LABELS":
        return ()
    return (
        f"{path.name} names {len(told.value):,} classes ({told.source}) and has {class_count:,} outputs: its names are "
        f"not used, but {labels.source}. Name the classes with {ENV_PREFIX}LABELS.",
    )


def _file(settings: CheckpointSettings, source: CheckpointFile, reporter: Reporter) -> Checkpoint:
    reporter.step(f"Reading {source.path}")
    return examine(settings, source.path).checkpoint


def _offline_demo(settings: CheckpointSettings, reporter: Reporter) -> Checkpoint:
    reporter.step("Reading the offline demo")
    from .checkpoints.offline_demo import ARCHITECTURE, PREPROCESSING

    weights, sha256, path = checkpoints.read_offline_demo()
    class_count = count_classes(ARCHITECTURE, weights)
    labels = choose_labels(class_count, settings.labels)
    return Checkpoint(weights, ARCHITECTURE, class_count, PREPROCESSING, labels, sha256, str(path))
