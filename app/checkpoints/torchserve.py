"""TorchServe archives (.mar): the model file in them is read by its own reader. Their Python code never runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from ..errors import CheckpointError
from ..labels import names_by_index
from .base import Decision, Stored, Told
from .json_file import parse_json
from .presets import PRESETS
from .zip_file import Archive, open_zip

MANIFEST = "MAR-INF/MANIFEST.json"
_LABELS = "index_to_name.json"
_MAX_JSON_BYTES = 4 << 20
# Weights compress little: by 7% for a trained network, by half if they were rounded to 16 bits.
_SPARE_BYTES = 64 << 20
# ts/torch_handler/image_classifier.py: Resize(256), CenterCrop(224), ImageNet's mean and deviation; softmax.
_OWN_HANDLER = "image_classifier"
_OWN_TOLD = Told(
    preprocessing=Decision(PRESETS["torchvision-v1"], f"the archive's handler, {_OWN_HANDLER}"),
    activation=Decision("softmax", f"the archive's handler, {_OWN_HANDLER}"),
)


def is_torchserve(names: list[str]) -> bool:
    return MANIFEST in names


def read_torchserve(path: Path, read: Callable[[Path, int], Stored]) -> Stored:
    """The result of `read`, called with the unpacked model file and a size limit, and the archive's labels."""
    archive = open_zip(path)
    model = _model(archive)
    name = _serialized_file(archive, model)
    limit_bytes = 2 * path.stat().st_size + _SPARE_BYTES
    _check_unpacked(archive, name, limit_bytes)
    with TemporaryDirectory(prefix="resnet-serve-") as folder:
        inner = Path(folder) / "model"
        archive.extract(name, inner, limit_bytes)
        try:
            stored = read(inner, limit_bytes)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(inner), f"{path} ({name})")) from None
    told = Told(labels=_labels(archive)).then(stored.told)
    if model.get("handler") == _OWN_HANDLER:
        told = told.then(_OWN_TOLD)
    return replace(stored, told=told, warnings=(*stored.warnings, *_own_code(model, path)))


def _check_unpacked(archive: Archive, name: str, limit_bytes: int) -> None:
    """Raises `CheckpointError` for a member over the limit or without enough disk space, before it is unpacked."""
    size = archive.size(name)
    if size > limit_bytes:
        raise CheckpointError(
            f"{archive.path}: {name} unpacks to {size:,} bytes, and from an archive of this size at most "
            f"{limit_bytes:,} are unpacked. Unpack it yourself, and name the model file: unzip {archive.path}."
        )
    free = shutil.disk_usage(gettempdir()).free
    if size > free:
        raise CheckpointError(
            f"{archive.path}: {name} unpacks to {size:,} bytes, and {gettempdir()} has {free:,} left. Make room, or "
            f"set TMPDIR to a folder that has it."
        )


def _model(archive: Archive) -> Mapping[str, Any]:
    try:
        model = parse_json(archive.read(MANIFEST, _MAX_JSON_BYTES))["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        model = None
    return model if isinstance(model, dict) else {}


def _serialized_file(archive: Archive, model: Mapping[str, Any]) -> str:
    name = model.get("serializedFile")
    if not isinstance(name, str) or name not in archive.members:
        raise CheckpointError(
            f"{archive.path}: {MANIFEST} names no model file that is in the archive (model.serializedFile). "
            f"Give --serialized-file to torch-model-archiver."
        )
    return name


def _own_code(model: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Warnings that the archive's own code, which could change answers, is not run."""
    handler = model.get("handler")
    if isinstance(handler, str) and handler.partition(":")[0].endswith(".py"):
        yield (
            f"{path.name} has a handler of its own ({handler[:60]}), which is not run: how it prepares images and "
            f"what it makes of the scores is not known here. Compare an answer with TorchServe's."
        )
    class_file = model.get("modelFile")
    if isinstance(class_file, str) and class_file:
        yield (
            f"{path.name} has a class of its own ({class_file[:60]}), which is not run: what its forward does beside "
            f"the network is not known here. Compare an answer with TorchServe's, or export the model to ONNX."
        )


def _labels(archive: Archive) -> Decision[tuple[str, ...]] | None:
    """index_to_name.json: index → name, or → list that ends in the name."""
    if _LABELS not in archive.members:
        return None
    try:
        names = names_by_index(parse_json(archive.read(_LABELS, _MAX_JSON_BYTES)))
    except (ValueError, RecursionError):
        raise CheckpointError(
            f'{archive.path}: {_LABELS} is not a label map. Expected {{"0": "name", …}} with every index from 0 up.'
        ) from None
    return Decision(names, f"the archive's {_LABELS}")
