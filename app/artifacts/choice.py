"""Which backend serves what the settings mean: ONNX Runtime from a kept export on the CPU, torch otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ..backends.onnx import check_onnx_options
from ..checkpoints import Checkpoint
from ..errors import ExportFailed, StartError
from ..opening import LoadCancelled, Reporter, find_weights, open_checkpoint
from ..resources import cuda_device_count
from ..settings import ModelSettings
from .key import key_of, key_parts
from .looking_up import NotRemembered, look_up_remembered
from .process import CannotExport, CannotWrite, export_apart, first_line
from .store import Store

logger = logging.getLogger(__name__)

_NO_CARD_FOR_TORCH = (
    "The driver counts a CUDA device, but PyTorch cannot use it (a build without CUDA, or a driver too old for it), so "
    "the CPU serves. Install a build of PyTorch for that driver (https://pytorch.org/get-started), or set "
    "RESNET_DEVICE=cpu."
)


def open_served(
    settings: ModelSettings, reporter: Reporter, is_cancelled: Callable[[], bool]
) -> tuple[Checkpoint, str]:
    """The checkpoint that the settings name and the backend that is to serve it, "torch" or "onnx".

    For ONNX Runtime the checkpoint is a graph, kept on disk from the first start on: later ones import no torch. A
    network that cannot be exported is served by torch, with a warning, unless the settings say onnx. Raises a
    `StartError`. Blocks, at a first start for seconds.
    """
    if settings.backend == "onnx":
        # Before the weights are read, which takes a while.
        check_onnx_options(settings.device, settings.precision)
    warnings: tuple[str, ...] = ()
    for_cpu = is_for_cpu(settings)
    if not for_cpu and settings.device == "auto" and cuda_device_count() > 0 and not _torch_sees_a_card():
        warnings = (_NO_CARD_FOR_TORCH,)
        for_cpu = is_for_cpu(settings.model_copy(update={"device": "cpu"}))
    if not for_cpu:
        checkpoint = open_checkpoint(settings, reporter, is_cancelled)
        backend = "onnx" if checkpoint.graph is not None else "torch"
        return replace(checkpoint, warnings=(*warnings, *checkpoint.warnings)), backend
    try:
        checkpoint = _exported(settings, reporter, is_cancelled)
        return replace(checkpoint, warnings=(*warnings, *checkpoint.warnings)), "onnx"
    except ExportFailed as error:
        if settings.backend == "onnx":
            raise
        checkpoint = open_checkpoint(settings, reporter, is_cancelled)
        warning = f"{error} So it is served by PyTorch, which is slower on a CPU."
        return replace(checkpoint, warnings=(*warnings, *checkpoint.warnings, warning)), "torch"


def is_for_cpu(settings: ModelSettings) -> bool:
    """Whether ONNX Runtime is to serve: on the CPU, in float32, unless another backend is named."""
    if settings.backend not in ("auto", "onnx") or settings.precision not in ("auto", "float32"):
        return False
    if settings.device == "auto":
        return settings.backend == "onnx" or cuda_device_count() == 0
    return settings.device == "cpu"


def _torch_sees_a_card() -> bool:
    import torch

    return torch.cuda.is_available()


def _exported(settings: ModelSettings, reporter: Reporter, is_cancelled: Callable[[], bool]) -> Checkpoint:
    store = Store(settings.cache_dir)
    kept = _kept(settings, store, reporter, is_cancelled)
    if kept is not None:
        return kept
    if is_cancelled():
        raise LoadCancelled("Stopped while loading.")
    reporter.step("Starting PyTorch in a process of its own")
    try:
        made = store.read(export_apart(settings, reporter, is_cancelled))
        reason = "it could not be read back"
    except CannotWrite as error:
        made, reason = None, str(error)
    except CannotExport as error:
        made, reason = None, ""
        reporter.warn(
            f"The export failed in its own process: {error}. So it is made in this one and not kept, which takes more "
            f"memory; the next start tries again."
        )
    if made is not None:
        return made
    if reason:
        reporter.warn(
            f"The export cannot be kept in {settings.cache_dir}: {reason}. Each start makes it again and takes more "
            f"memory. Give RESNET_CACHE_DIR a folder with room that the service's user may write to."
        )
    from .build import export_in_memory

    checkpoint = open_checkpoint(settings, reporter, is_cancelled)
    reporter.step(f"Exporting {checkpoint.architecture} for this CPU")
    try:
        return export_in_memory(checkpoint, settings.compute_thread_count)
    except (StartError, MemoryError):
        raise
    except Exception as error:
        logger.debug("The export failed.", exc_info=True)
        raise ExportFailed(f"{checkpoint.architecture} cannot be exported here: {first_line(error)}.", True) from None


def _kept(
    settings: ModelSettings, store: Store, reporter: Reporter, is_cancelled: Callable[[], bool]
) -> Checkpoint | None:
    """The export of an earlier start, if there is a whole one. Imports no torch.

    Raises `ExportFailed` where an earlier start has found that there can be none.
    """
    try:
        found = find_weights(settings, reporter, is_cancelled, look_up_remembered(store))
        reporter.step("Looking for its export")
        key = key_of(key_parts(settings, found))
    except NotRemembered:
        return None
    except OSError as error:
        # Reading the checkpoint says it in its own words.
        logger.debug("%s", error)
        return None
    kept = store.read(key)
    if kept is None and (reason := store.failure(key)) is not None:
        raise ExportFailed(reason)
    return kept
