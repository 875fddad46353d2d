"""torch.save files, zip and legacy: nothing in them runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .base import Stored
from .inert_unpickler import WRAPPERS
from .module_facts import warn_of_class
from .pickled_weights import MAX_PICKLE_BYTES, Pickled, check_claims, load_tensors, unpickle
from .zip_file import Archive, open_zip, require_stored

if TYPE_CHECKING:
    import torch

# The pickled magic number at the start of a file from before torch 1.6 (torch/serialization.py, MAGIC_NUMBER).
_LEGACY_HEAD = bytes.fromhex("80028a0a6cfc9c46f920")


_LEGACY_ELEMENT_BYTES = {"float64": 8, "float32": 4, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
_PICKLED_MODULE = "the file's pickled module"


def is_torch_zip(names: list[str]) -> bool:
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in names)


def is_torch_legacy(head: bytes, tail: bytes) -> bool:
    return head.startswith(_LEGACY_HEAD)


def read_torch_zip(path: Path) -> Stored:
    """The tensors of a state dict, of a training checkpoint that wraps one, or of a whole pickled module."""
    archive = open_zip(path)
    require_stored(archive)
    root = _root(archive)
    pickled = unpickle("zip", archive.read(f"{root}data.pkl", MAX_PICKLE_BYTES), path)
    return _read(path, pickled, lambda: _zip_storages(archive, root))


def read_torch_legacy(path: Path) -> Stored:
    """The same of a file from before torch 1.6."""
    with path.open("rb") as file:
        pickled = unpickle("legacy", file.read(MAX_PICKLE_BYTES), path)
    return _read(path, pickled, lambda: _legacy_storages(path, pickled))


def _read(path: Path, pickled: Pickled, storages: Callable[[], Callable[[str], bytearray]]) -> Stored:
    """By torch where it takes the file; what it refuses for the objects in it, from the places that `pickled` has."""
    import torch

    try:
        # Opened here: a path that ends in .safetensors, torch would read as that, whatever it is.
        with path.open("rb") as file:
            document = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not pickled.tensors:
            raise CheckpointError(
                f"{path} holds more than tensors ({_first_line(error)}), and nothing in a checkpoint is ever run "
                f"here. Save the weights alone: torch.save(model.state_dict(), 'weights.pth')."
            ) from None
    except Exception as error:
        # Damage fails with whatever torch's parsing meets: RuntimeError, EOFError, IndexError, AssertionError,
        # struct.error, …
        raise CheckpointError(
            f"{path} looks like a PyTorch file but cannot be read ({_first_line(error)}). Copy or download it again."
        ) from None
    else:
        return to_stored(_unwrap(document, path), path)
    # Out here the error is gone, and with it all that torch had read.
    tensors = load_tensors(pickled.tensors, storages(), path)
    return replace(
        to_stored(tensors, path),
        modules=pickled.modules,
        modules_source=_PICKLED_MODULE,
        warnings=warn_of_class(pickled.modules, path),
    )


def to_stored(tensors: Mapping[str, torch.Tensor], path: Path) -> Stored:
    """The tensors as float32 arrays, once they are seen to be no larger than the file."""
    arrays = {}
    for name, tensor in tensors.items():
        check_dense(name, tensor, path)
    check_claims(tensors, path)
    for name, tensor in tensors.items():
        arrays[name] = to_float32(name, tensor, path)
    return Stored(arrays)


def _root(archive: Archive) -> str:
    return next(name for name in archive.members if name.endswith("data.pkl")).removesuffix("data.pkl")


def _zip_storages(archive: Archive, root: str) -> Callable[[str], bytearray]:
    if f"{root}byteorder" in archive.members and archive.read(f"{root}byteorder", 64).strip() != b"little":
        raise CheckpointError(
            f"{archive.path} was saved on a big-endian machine together with objects that are no tensors. Save the "
            f"weights alone: torch.save(model.state_dict(), 'weights.pth')."
        )
    return lambda key: archive.read_stored(f"{root}data/{key}")


def _legacy_storages(path: Path, pickled: Pickled) -> Callable[[str], bytearray]:
    """Behind the pickles: of each storage its number of elements (int64), then its bytes."""
    spans: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        at = pickled.offset
        for key, dtype in pickled.storages:
            file.seek(at)
            count = int.from_bytes(file.read(8), "little")
            spans[key] = at + 8, count * _LEGACY_ELEMENT_BYTES.get(dtype, 2)
            at = sum(spans[key])
            if at > size:
                break

    def read(key: str) -> bytearray:
        start, length = spans.get(key, (size, 1))
        if start + length > size:
            raise CheckpointError(
                f"{path} looks like a PyTorch file but cannot be read (it ends early). Copy or download it again."
            )
        with path.open("rb") as file:
            file.seek(start)
            return bytearray(file.read(length))

    return read


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
    for _ in WRAPPERS:
        if isinstance(document, Mapping):
            wrapped = (document[key] for key in WRAPPERS if isinstance(document.get(key), Mapping))
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
        f"{', '.join(WRAPPERS)}; found {found}."
    )


def check_dense(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Raises `CheckpointError` for a tensor that is no plain array of floats or integers, or has too few values."""
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


def to_float32(name: str, tensor: torch.Tensor, path: Path) -> NDArray[Any]:
    """A float tensor as a float32 array; integers (batch counters) as they are."""
    import torch

    check_dense(name, tensor, path)
    if not tensor.is_floating_point():
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.detach().to(torch.float32).contiguous().numpy())
