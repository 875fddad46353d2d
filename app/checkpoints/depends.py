"""What reading a checkpoint depends on: every file that is asked, by its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..labels import LABEL_FILES
from .folders import find_folder, home_of, weights_in
from .model_config import CONFIG, PREPROCESSOR
from .onnx_data import data_files as onnx_data_files
from .onnx_data import is_onnx
from .tensor_bundle import data_files

_COMPANIONS = (CONFIG, PREPROCESSOR, *LABEL_FILES)
# Their being there says whose folder it is.
_SIGNS = ("MLmodel", "saved_model.pb", ".metadata", "pytorch_model.bin.index.json", "model.safetensors.index.json")


def depends_on(path: Path, labels: Path | None = None) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file that the answer of reading the checkpoint `path` depends on.

    A file that is not there counts as that. With two equal lists, and equal settings and code, reading gives the same
    twice. `labels` is the labels file that the settings name. Raises `CheckpointError` as reading would, and `OSError`.
    """
    home = home_of(path)
    weights = weights_in(path)
    files = [weights, *(data_files(weights) if weights.suffix == ".index" else ()), *_onnx_files(weights)]
    files += [home / name for name in _COMPANIONS]
    files += [labels] if labels else []
    found = [(str(file), sha256_of(file) if file.is_file() else "none") for file in files]
    found += [(str(home / name), str((home / name).exists())) for name in _SIGNS]
    if find_folder(home) is not None:
        inside = sorted(home.rglob("*"))
        found += [(str(each), f"link to {each.readlink()}" if each.is_symlink() else "inside") for each in inside]
    return found


def _onnx_files(weights: Path) -> list[Path]:
    """Those beside an ONNX model that have its weights."""
    if not weights.is_file():
        return []
    with weights.open("rb") as file:
        head = file.read(16)
    return list(onnx_data_files(weights).values()) if is_onnx(head, b"") else []


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
