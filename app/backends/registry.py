"""Backend names → backends. Imports happen inside the factories, so that only what is used is loaded."""

from __future__ import annotations

from collections.abc import Callable

from ..checkpoints import Checkpoint
from ..errors import SettingError
from .base import Backend, BackendOptions
from .choice import backend_name


def _torch(checkpoint: Checkpoint, options: BackendOptions) -> Backend:
    from .torch import create_torch_backend

    return create_torch_backend(checkpoint, options)


def _onnx(checkpoint: Checkpoint, options: BackendOptions) -> Backend:
    from .onnx import create_onnx_backend

    return create_onnx_backend(checkpoint, options)


def _null(checkpoint: Checkpoint, options: BackendOptions) -> Backend:
    from .null import NullBackend

    return NullBackend(checkpoint)


_FACTORIES: dict[str, Callable[[Checkpoint, BackendOptions], Backend]] = {
    "torch": _torch,
    "onnx": _onnx,
    "null": _null,
}


def create_backend(name: str, checkpoint: Checkpoint, options: BackendOptions) -> Backend:
    """The backend called `name`, holding `checkpoint`; for "auto" the one that `choice.backend_name` names.

    Raises `SettingError` for a name or a device that is not to be had, `CheckpointError` where the weights do not fit.
    """
    name = backend_name(name, checkpoint)
    if name not in _FACTORIES:
        raise SettingError(f"RESNET_BACKEND cannot be {name!r}: supported are auto, {', '.join(sorted(_FACTORIES))}.")
    return _FACTORIES[name](checkpoint, options)


def null_checkpoint() -> Checkpoint:
    """What the null backend serves: no weights, ImageNet's labels and ResNet-50's own input."""
    from .null import NULL_CHECKPOINT

    return NULL_CHECKPOINT
