"""torch.save files, zip and legacy, read with weights_only: nothing in them runs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Stored

if TYPE_CHECKING:
    import torch

# Where training scripts keep the weights, in the order of preference: averaged ones first.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "weights")
# The pickled magic number at the start of a file from before torch 1.6 (torch/serialization.py, MAGIC_NUMBER).
_LEGACY_HEAD = bytes.fromhex("80028a0a6cfc9c46f920")


def is_torch_zip(head: bytes, tail: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


def is_torch_legacy(head: bytes, tail: bytes) -> bool:
    return head.startswith(_LEGACY_HEAD)


def read_torch(path: Path) -> Stored:
    """The tensors of a state dict, or of a training checkpoint that wraps one."""
    import torch

    try:
        # A file and not its path, from whose suffix torch would tell what it is.
        with path.open("rb") as file:
            document = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors ({_first_line(error)}), and nothing in a checkpoint is ever run here. "
            f"Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."
        ) from None
    except Exception as error:
        # Damage fails with whatever torch's parsing meets: RuntimeError, EOFError, IndexError, AssertionError,
        # struct.error, …
        raise CheckpointError(
            f"{path} looks like a PyTorch file but cannot be read ({_first_line(error)}). Copy or download it again."
        ) from None
    tensors = _unwrap(document, path)
    return Stored({name: to_float32(name, tensor, path) for name, tensor in tensors.items()})


def _first_line(error: Exception) -> str:
    """What torch says first, without its advice to load unsafely."""
    text = str(error).replace("Weights only load failed.", "").strip()
    for line in text.splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.split(". ")[0].strip()[:160]
    return (text.splitlines() or [type(error).__name__])[0][:160].rstrip(". ")


def _unwrap(document: Any, path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    # As deep as there are wrappers and no deeper: a mapping in a file may hold itself.
    for _ in _WRAPPERS:
        if isinstance(document, Mapping):
            wrapped = (document[key] for key in _WRAPPERS if isinstance(document.get(key), Mapping))
            document = next(wrapped, document)
    if isinstance(document, Mapping):
        tensors = {str(name): value for name, value in document.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return tensors
        found = "a mapping with the keys " + ", ".join(str(key) for key in list(document)[:5])
    else:
        found = f"a {type(document).__name__}"
    raise CheckpointError(
        f"{path} holds no state dict. Expected a mapping of names to tensors, bare or under one of "
        f"{', '.join(_WRAPPERS)}; found {found}."
    )


def to_float32(name: str, tensor: torch.Tensor, path: Path) -> NDArray[Any]:
    """A float tensor as a float32 array; integers (batch counters) as they are."""
    import torch

    is_dense = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
    is_float = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if not is_dense or tensor.is_complex() or (tensor.is_floating_point() and not is_float):
        raise CheckpointError(
            f"{path}: {name} is sparse, quantized, without data or of a number format that does not fit "
            f"({tensor.dtype}). Expected dense float16, bfloat16, float32 or float64."
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} claims shape {tuple(tensor.shape)} but stores fewer values.")
    if not is_float:
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.detach().to(torch.float32).contiguous().numpy())
