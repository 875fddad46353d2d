"""TorchServe's archives (.mar): the model file in them by its own reader. Their Python never runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import CheckpointError
from .base import Decision, Stored
from .zip_file import Archive, open_zip

MANIFEST = "MAR-INF/MANIFEST.json"
_LABELS = "index_to_name.json"
_MAX_JSON_BYTES = 4 << 20
_MAX_MODEL_BYTES = 1 << 30


def is_torchserve(names: list[str]) -> bool:
    return MANIFEST in names


def read_torchserve(path: Path, read: Callable[[Path], Stored]) -> Stored:
    """What `read` finds in the archive's model file, with the labels that lie beside it."""
    archive = open_zip(path)
    name = _serialized_file(archive)
    with TemporaryDirectory(prefix="resnet-serve-") as folder:
        inner = Path(folder) / "model"
        # Weights hardly pack: a model that unpacks to far more is no model.
        archive.extract(name, inner, max(_MAX_MODEL_BYTES, 2 * path.stat().st_size))
        try:
            stored = read(inner)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(inner), f"{path} ({name})")) from None
    labels = _labels(archive)
    return replace(stored, told=replace(stored.told, labels=labels or stored.told.labels))


def _serialized_file(archive: Archive) -> str:
    try:
        name = json.loads(archive.read(MANIFEST, _MAX_JSON_BYTES))["model"]["serializedFile"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or name not in archive.members:
        raise CheckpointError(
            f"{archive.path}: {MANIFEST} names no model file that is in the archive (model.serializedFile). "
            f"Give --serialized-file to torch-model-archiver."
        )
    return name


def _labels(archive: Archive) -> Decision[tuple[str, ...]] | None:
    """index_to_name.json: index → name, or → list that ends in the name."""
    if _LABELS not in archive.members:
        return None
    try:
        document = json.loads(archive.read(_LABELS, _MAX_JSON_BYTES))
        entries = [document[str(index)] for index in range(len(document))]
        names = tuple(entry[-1] if isinstance(entry, list) else entry for entry in entries)
    except (ValueError, LookupError, TypeError, RecursionError):
        names = (None,)
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f'{archive.path}: {_LABELS} is not a label map. Expected {{"0": "name", …}} with every index from 0 up.'
        )
    return Decision(names, f"the archive's {_LABELS}")
