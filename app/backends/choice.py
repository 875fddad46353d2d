"""The one place that decides what "auto" means: which backend serves, before the weights are read and after."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoints import Checkpoint
from ..resources import cuda_device_count
from ..settings import BackendSettings
from .onnx import check_onnx_options

_NO_GPU_FOR_TORCH = (
    "The driver counts a CUDA device, but PyTorch cannot use it (a build without CUDA, or a driver too old for it), so "
    "the CPU serves. Install a build of PyTorch for that driver (https://pytorch.org/get-started), or set "
    "RESNET_DEVICE=cpu."
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the settings and the machine decide, whatever the weights are."""

    needs_graph: bool
    """Whether ONNX Runtime is to serve, so that weights are first written as a graph."""
    warning: str | None = None


def choose(settings: BackendSettings) -> Choice:
    """ONNX Runtime on the CPU in float32, else torch, unless a backend is named. Imports torch where there is a GPU.

    Raises `SettingError` for a device or a precision that the named backend does not have.
    """
    if settings.backend == "onnx":
        check_onnx_options(settings.device, settings.precision)
    if is_for_cpu(settings):
        return Choice(needs_graph=True)
    if settings.device == "auto" and cuda_device_count() > 0 and not _torch_sees_a_gpu():
        on_cpu = settings.model_copy(update={"device": "cpu"})
        return Choice(needs_graph=is_for_cpu(on_cpu), warning=_NO_GPU_FOR_TORCH)
    return Choice(needs_graph=False)


def is_for_cpu(settings: BackendSettings) -> bool:
    """Whether ONNX Runtime is to serve, as far as settings and driver say: on the CPU, in float32."""
    if settings.backend not in ("auto", "onnx") or settings.precision not in ("auto", "float32"):
        return False
    if settings.device == "auto":
        return settings.backend == "onnx" or cuda_device_count() == 0
    return settings.device == "cpu"


def backend_name(setting: str, checkpoint: Checkpoint) -> str:
    """The backend for `checkpoint`: the setting's; of auto, onnx for a graph and torch for weights."""
    if setting != "auto":
        return setting
    return "torch" if checkpoint.graph is None else "onnx"


def _torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
