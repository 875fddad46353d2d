"""The table of checkpoint readers: a new format is one file and one row."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..files import check_regular, open_regular
from ..labels import are_labels_of
from .base import Contents, Graph, Stored, Told, Weights
from .deep_stems import check_plain, told_by_stem
from .exported_program import is_exported_program, read_exported_program
from .families import Place
from .folders import Beside, find_folder, home_of, read_beside, weights_in
from .image_config import with_normalisation
from .json_file import unreadable
from .keras_file import is_keras_h5, is_keras_zip, read_keras_h5, read_keras_zip
from .names import settle_names
from .onnx_data import is_onnx, model_files
from .onnx_file import read_onnx, settle
from .own_preprocessing import read_own_preprocessing
from .refused import refuse_by_sign, refuse_zip, what_it_is
from .safetensors_file import is_safetensors, read_safetensors
from .sharded import files_of, is_index, read_sharded
from .state_dict import check_values
from .tensor_bundle import data_files, is_tensor_bundle, read_tensor_bundle
from .torch_file import is_torch_legacy, is_torch_zip, read_torch_legacy, read_torch_zip
from .torch_script import is_torch_script, read_torch_script
from .torchserve import is_torchserve, read_torchserve
from .zip_file import open_zip

# A tar's signature is at 257.
_EDGE_BYTES = 512
MAX_CHECKPOINT_BYTES = 1 << 30


def _itself(path: Path) -> list[Path]:
    return [path]


def is_zip(head: bytes, tail: bytes) -> bool:
    return head.startswith(b"PK\x03\x04")


@dataclass(frozen=True, slots=True)
class Reader:
    """A container format, recognised by its first or last bytes, never by its name."""

    name: str
    recognises: Callable[[bytes, bytes], bool]
    read: Callable[[Path], Stored]
    files: Callable[[Path], Iterable[Path]] = _itself
    """All files of the checkpoint; their digest is its version."""
    recognises_zip: Callable[[list[str]], bool] | None = None
    """Whether a zip's member names are those of this container; called after `recognises`. None if it is no zip."""


READERS = (
    Reader("Keras 3 (.keras)", is_zip, read_keras_zip, recognises_zip=is_keras_zip),
    Reader("TorchServe archive", is_zip, lambda path: read_torchserve(path, _unpacked), recognises_zip=is_torchserve),
    Reader("torch.export", is_zip, read_exported_program, recognises_zip=is_exported_program),
    # Before torch's zip: a TorchScript file is one too.
    Reader("TorchScript", is_zip, read_torch_script, recognises_zip=is_torch_script),
    Reader("torch zip", is_zip, read_torch_zip, recognises_zip=is_torch_zip),
    Reader("torch legacy", is_torch_legacy, read_torch_legacy),
    Reader("safetensors", is_safetensors, read_safetensors),
    Reader("weights in several files", is_index, lambda index: read_sharded(index, _shard), files_of),
    Reader("TensorFlow checkpoint", is_tensor_bundle, read_tensor_bundle, lambda index: [index, *data_files(index)]),
    Reader("Keras HDF5", is_keras_h5, read_keras_h5),
    # Last: protobuf is recognised by only three bytes.
    Reader("ONNX", is_onnx, read_onnx, model_files),
)


def read_checkpoint(path: Path, max_bytes: int = MAX_CHECKPOINT_BYTES, output: str | None = None) -> Contents:
    """The contents of the checkpoint at `path`; for a TensorFlow checkpoint, that is its `.index` file.

    `output` names the output of an ONNX file that has the scores; None to find it. No code in the file is run. Raises
    `CheckpointError` with the expected and the found content.
    """
    given, folder = path, find_folder(path)
    own = read_own_preprocessing(home_of(path))
    path = weights_in(path)
    beside = read_beside(path)
    reader = find_reader(path, max_bytes)
    stored = read_onnx(path, output) if reader.read is read_onnx else reader.read(path)
    settled = settle_names(stored, path)
    weights = settled.weights
    check_values(weights, path)
    stem = told_by_stem(weights)
    told = settled.told.then(stored.told).then(beside.told)
    if settled.normalisation is not None:
        told = with_normalisation(told, settled.normalisation)
    if stored.graph is not None:
        told = settle(stored.graph, told)
    if stem.architecture is not None:
        check_plain(told, path)
    _check_labels(weights, stored.graph, beside, path)
    return Contents(
        path=given,
        weights=weights,
        sha256=_digest(reader.files(path)),
        container=f"{folder.name} ({reader.name})" if folder else reader.name,
        family=_family_name(stored, settled.place, stem),
        told=told.then(stem).then(settled.place.family.told if settled.place else Told()),
        warnings=(*stored.warnings, *settled.warnings, *beside.warnings),
        graph=stored.graph,
        notes=(*stored.notes, *settled.notes, *beside.notes),
        preprocessing_beside=own,
    )


def _family_name(stored: Stored, place: Place | None, stem: Told) -> str:
    if stored.graph:
        return "its own graph, quantized to int8" if stored.graph.quantized else "its own graph"
    if stem.architecture:
        return f"timm {stem.architecture.value}"
    return place.family.name if place else "torchvision"


def find_reader(path: Path, max_bytes: int = MAX_CHECKPOINT_BYTES) -> Reader:
    """The reader for the file at `path`. Raises `CheckpointError` if there is none, or if the file is too large."""
    head, tail = _edges(path)
    _check_sizes([path], max_bytes)
    # The first eight bytes of safetensors are a number, which may equal another format's signature.
    if not is_safetensors(head, tail):
        refuse_by_sign(path, head, tail)
    members = list(open_zip(path).members) if is_zip(head, tail) else []
    for reader in READERS:
        if reader.recognises(head, tail) and (reader.recognises_zip is None or reader.recognises_zip(members)):
            _check_sizes(reader.files(path), max_bytes)
            return reader
    if members:
        refuse_zip(path, members)
    raise CheckpointError(
        f"{path} is no checkpoint that can be read here. Expected a PyTorch file (.pth, .pt), safetensors, a "
        f"Keras file (.h5, .keras), a TensorFlow checkpoint (.index) or ONNX; {what_it_is(head)}."
    )


def _unpacked(path: Path, max_bytes: int) -> Stored:
    """The content of a file unpacked from an archive."""
    reader = find_reader(path, max_bytes)
    # An archive that contains itself would be unpacked endlessly.
    if reader.name == "TorchServe archive":
        raise CheckpointError(f"{path} is an archive in an archive. Put the model file itself into it.")
    return reader.read(path)


def _shard(path: Path) -> Stored:
    """The content of one of a checkpoint's several files."""
    reader = find_reader(path, sys.maxsize)  # `find_reader` has checked their total size
    if reader.name not in ("safetensors", "torch zip", "torch legacy"):
        raise CheckpointError(f"{path} is one of several files of weights, and it is {reader.name}. Save them again.")
    return reader.read(path)


def _check_sizes(files: Iterable[Path], max_bytes: int) -> None:
    """Raises `CheckpointError` for a file that is not regular, and if they are too large together."""
    total = 0
    for number, path in enumerate(files):
        try:
            total += check_regular(path).st_size
        except OSError as error:
            raise unreadable(path, error) from None
        if total > max_bytes:
            together = " with the files before it" if number else ""
            raise CheckpointError(
                f"{path} has {total:,} bytes{together}, and at most {max_bytes:,} are read. A ResNet-50's weights have "
                f"some 100,000,000: if it is meant, set RESNET_MAX_CHECKPOINT_BYTES."
            )


def _check_labels(weights: Weights, graph: Graph | None, beside: Beside, path: Path) -> None:
    """Raises `CheckpointError` if the files beside the weights name a different number of classes."""
    labels, head = beside.told.labels, weights.get("fc.weight")
    count = graph.class_count if graph else len(head) if head is not None and head.ndim else None
    if labels is not None and count is not None and not are_labels_of(labels.value, count):
        raise CheckpointError(
            f"{path.parent / labels.source} names {len(labels.value)} classes, but the weights have {count}. They "
            f"are of two models: copy the files of one."
        )


def _edges(path: Path) -> tuple[bytes, bytes]:
    """The first and the last bytes of the file. Never waits: a pipe or a device is refused."""
    try:
        with open_regular(path) as file:
            head = file.read(_EDGE_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - _EDGE_BYTES))
            return head, file.read()
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder. Expected a file: a .pth, .pt, .safetensors or .index.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 of the concatenated files; for a single file, its own."""
    sha256 = hashlib.sha256()
    for path in files:
        with open_regular(path) as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
    return sha256.hexdigest()
