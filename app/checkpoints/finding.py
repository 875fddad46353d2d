"""The first step of a checkpoint's road: settings → the weights they mean, downloaded where they must be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import MAY_FALL_BACK, DownloadError, LoadCancelled
from ..progress import Reporter
from ..settings import ENV_PREFIX, CheckpointSettings
from .download import fetch as fetch_file
from .locate import CheckpointFile, OfflineDemo, PublishedName, Source, locate
from .published import PublishedWeights, find_by_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """The weights that the settings mean, on this machine and not read yet."""

    source: CheckpointFile | OfflineDemo
    fallback_warning: str | None = None
    """A sentence that names the weights which could not be downloaded, if these are the fallback; else None."""


def find(settings: CheckpointSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Found:
    """The weights that the settings name, downloaded if needed; or the fallback, if the settings allow it.

    Raises a `StartError` with the cause and a remedy. Blocks.
    """
    source: Source = locate(settings.weights)
    if not isinstance(source, PublishedName):
        return Found(source)
    try:
        published = find_by_name(published_architecture(settings), source.name)
        return Found(CheckpointFile(download(settings, published, reporter, is_cancelled)))
    except MAY_FALL_BACK as error:
        if is_cancelled():
            raise LoadCancelled("Stopped while loading.") from None
        if settings.weights_fallback != "offline-demo":
            raise
        logger.warning("%s", error)
        return Found(
            OfflineDemo(),
            f"{source.name} of {published_architecture(settings)} could not be downloaded, so this serves the "
            f"offline demo: an EfficientNet-Lite0, which is not a ResNet-50. Put a checkpoint into model_weights/ "
            f"to serve yours.",
        )
    except DownloadError:
        if is_cancelled():
            raise LoadCancelled("Stopped while loading.") from None
        raise


def published_architecture(settings: CheckpointSettings) -> str:
    """The architecture of published weights: resnet50, unless the setting names another."""
    return "resnet50" if settings.architecture == "auto" else settings.architecture


def download(
    settings: CheckpointSettings,
    published: PublishedWeights,
    reporter: Reporter,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Path:
    """torchvision's file in the cache folder, downloaded unless it exists. Raises `DownloadError`."""
    url = published.url
    if settings.download_mirror:
        url = f"{settings.download_mirror.rstrip('/')}/{published.file_name}"
    return fetch_file(
        url,
        settings.cache_dir / "checkpoints",
        published.sha256_prefix,
        progress=lambda received, expected: reporter.downloading(published.file_name, received, expected),
        is_cancelled=is_cancelled,
        setting=f"{ENV_PREFIX}DOWNLOAD_MIRROR" if settings.download_mirror else None,
    )
