"""The road of a checkpoint to what is served: find → (kept artifact, or read → decide → artifact)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ..backends.choice import choose
from ..checkpoints import Checkpoint, Found, find, open_checkpoint, read_and_decide
from ..errors import ExportFailed, LoadCancelled, StartError, clause_of
from ..progress import Reporter
from ..settings import ModelSettings
from .checking import check_here
from .key import key_of
from .process import CannotExport, CannotWrite, export_apart
from .store import Store

logger = logging.getLogger(__name__)


def open_served(settings: ModelSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    """The checkpoint that the settings name, in the form that its backend serves (`backends.choice`).

    For ONNX Runtime it is a graph: an artifact that is kept on disk from the first start on, so that later starts
    neither read the checkpoint nor import torch. A network that cannot be written as ONNX is served by torch, with a
    warning, unless the settings say onnx. Raises a `StartError`. Blocks, at a first start for seconds.
    """
    # Before the weights are read, which takes a while.
    choice = choose(settings)
    checkpoint = (
        _graph_or_weights(settings, reporter, is_cancelled)
        if choice.needs_graph
        else open_checkpoint(settings, reporter, is_cancelled)
    )
    if choice.warning is None:
        return checkpoint
    return replace(checkpoint, warnings=(choice.warning, *checkpoint.warnings))


def _graph_or_weights(settings: ModelSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    found = find(settings, reporter, is_cancelled)
    try:
        return _graph(settings, found, reporter, is_cancelled)
    except ExportFailed as error:
        if settings.backend == "onnx":
            raise
        checkpoint = read_and_decide(found, settings, reporter)
        warning = f"{error} So it is served by PyTorch, which is slower on a CPU."
        return replace(checkpoint, warnings=(*checkpoint.warnings, warning))


def _graph(settings: ModelSettings, found: Found, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    """The kept artifact, else one that is made in a process of its own, else one that stays in this one's memory."""
    store = Store(settings.cache_dir)
    if (kept := _kept(settings, store, found, reporter)) is not None:
        return kept
    if is_cancelled():
        raise LoadCancelled("Stopped while loading.")
    reporter.step("Exporting in a process of its own")
    try:
        artifact = store.read(export_apart(settings, found, reporter, is_cancelled))
        if artifact is not None:
            return artifact.checkpoint
        reason = "it could not be read back"
    except CannotWrite as error:
        reason = str(error)
    except CannotExport as error:
        reason = ""
        reporter.warn(
            f"The export failed in its own process: {error}. So it is made in this one and not kept, which takes more "
            f"memory; the next start tries again."
        )
    if reason:
        reporter.warn(
            f"The export cannot be kept in {settings.cache_dir}: {reason}. Each start makes it again and takes more "
            f"memory. Give RESNET_CACHE_DIR a folder with room that the service's user may write to."
        )
    return _made_here(settings, found, reporter)


def _kept(settings: ModelSettings, store: Store, found: Found, reporter: Reporter) -> Checkpoint | None:
    """The artifact of an earlier start, if there is a whole one. Imports no torch.

    Raises `ExportFailed` where an earlier start has found that there can be none.
    """
    reporter.step("Looking for its export")
    try:
        key = key_of(settings, found)
    except OSError as error:
        # Reading the checkpoint says it in its own words.
        logger.debug("%s", error)
        return None
    artifact = store.read(key)
    if artifact is not None:
        check_here(artifact, settings.compute_thread_count)
        return artifact.checkpoint
    if (reason := store.failure(key)) is not None:
        raise ExportFailed(reason)
    return None


def _made_here(settings: ModelSettings, found: Found, reporter: Reporter) -> Checkpoint:
    from .build import build

    checkpoint = read_and_decide(found, settings, reporter)
    reporter.step(f"Exporting {checkpoint.architecture}")
    try:
        return build(checkpoint, settings.compute_thread_count)
    except (StartError, MemoryError):
        raise
    except Exception as error:
        logger.debug("The export failed.", exc_info=True)
        raise ExportFailed(f"{checkpoint.architecture} cannot be exported here: {clause_of(error)}.", True) from None
