"""The files that reading a checkpoint depends on, with a digest of each."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..files import open_regular
from ..labels import GENERAL_LABEL_FILES, LABEL_FILES
from .folders import find_folder, home_of, weights_in
from .json_file import MAX_JSON_BYTES
from .model_config import CONFIG, PREPROCESSOR
from .own_preprocessing import OWN_PREPROCESSING
from .readers import MAX_CHECKPOINT_BYTES, find_reader
from .sharded import INDEXES

_COMPANIONS = (CONFIG, PREPROCESSOR, OWN_PREPROCESSING, *LABEL_FILES, *GENERAL_LABEL_FILES)
# The existence of these files determines the kind of the folder.
_SIGNS = ("MLmodel", "saved_model.pb", ".metadata", *INDEXES)


def depends_on(path: Path, labels: Path | None = None, max_bytes: int = MAX_CHECKPOINT_BYTES) -> list[tuple[str, str]]:
    """Name and SHA-256 of each file that affects the result of reading the checkpoint `path`.

    Missing files are listed as missing. Equal lists, settings and code give equal results. `labels` is the labels file
    that the settings name. Raises `OSError`, and `CheckpointError` as a reader with the limit `max_bytes` would.
    """
    home = home_of(path)
    weights = weights_in(path)
    found = [(str(file), sha256_of(file)) for file in find_reader(weights, max_bytes).files(weights)]
    companions = [*(home / name for name in _COMPANIONS), *([labels] if labels else [])]
    found += [(str(file), _digest_of(file)) for file in companions]
    found += [(str(home / name), str((home / name).exists())) for name in _SIGNS]
    if find_folder(home) is not None:
        inside = sorted(home.rglob("*"))
        found += [(str(each), f"link to {each.readlink()}" if each.is_symlink() else "inside") for each in inside]
    return found


def _digest_of(companion: Path) -> str:
    """The digest of a small file, "none" if it is missing, or "too large": its reader refuses it then."""
    if not companion.is_file():
        return "none"
    return sha256_of(companion) if companion.stat().st_size <= MAX_JSON_BYTES else "too large"


def sha256_of(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
