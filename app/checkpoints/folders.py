"""Folders that are one checkpoint: which framework wrote them, and which file in them has the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .base import Told
from .hub_cache import check_link, check_links, snapshot_of
from .model_config import is_hugging_face, is_timm, read_hugging_face, read_processor, read_timm
from .refused import is_distributed, refuse_distributed
from .sharded import INDEXES, refuse_shard

# In transformers' and timm's order of preference.
_WEIGHT_FILES = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1])
_VARIABLES = Path("variables", "variables.index")


@dataclass(frozen=True, slots=True)
class Beside:
    """Facts in the files beside the weights."""

    told: Told
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


NOTHING = Beside(Told())


def _nothing(folder: Path) -> Beside:
    return NOTHING


def _hugging_face(folder: Path) -> Beside:
    return Beside(*read_hugging_face(folder))


def _timm(folder: Path) -> Beside:
    return Beside(*read_timm(folder))


def _weight_file(folder: Path) -> Path | None:
    return next((folder / name for name in _WEIGHT_FILES if (folder / name).exists()), None)


def _has_index(folder: Path) -> bool:
    return any((folder / name).exists() for name in INDEXES)


_MLFLOW_WEIGHTS = ("data/model.pth", "data/state_dict.pth", "state_dict.pth", "data/model.pt2")


def _mlflow_file(folder: Path) -> Path | None:
    found = next((folder / name for name in _MLFLOW_WEIGHTS if (folder / name).exists()), None)
    if found is not None:
        check_link(found, folder)
    return found


def _variables(folder: Path) -> Path | None:
    return folder / _VARIABLES if (folder / _VARIABLES).exists() else None


@dataclass(frozen=True, slots=True)
class Folder:
    """A layout of a checkpoint in a folder."""

    name: str
    recognises: Callable[[Path], bool]
    weights: Callable[[Path], Path | None]
    """The file in the folder that a reader reads."""
    beside: Callable[[Path], Beside]


FOLDERS = (
    Folder("Hugging Face folder", is_hugging_face, _weight_file, _hugging_face),
    Folder("timm folder", is_timm, _weight_file, _timm),
    Folder("MLflow folder", lambda folder: (folder / "MLmodel").is_file(), _mlflow_file, _nothing),
    Folder("sharded checkpoint", is_distributed, refuse_distributed, _nothing),
    Folder("SavedModel", lambda folder: (folder / "saved_model.pb").exists(), _variables, _nothing),
    Folder("folder of weights in several files", _has_index, _weight_file, _nothing),
)


def find_folder(path: Path) -> Folder | None:
    """The layout of the folder `path`; None if it has none. Raises `CheckpointError` for a damaged config.json."""
    if not path.is_dir():
        return None
    home = home_of(path)
    return next((each for each in FOLDERS if each.recognises(home)), None)


def is_checkpoint_folder(path: Path) -> bool:
    """Whether `path` is a folder that is one checkpoint, with its weights in it."""
    folder = find_folder(path)
    return folder is not None and folder.weights(home_of(path)) is not None


def home_of(path: Path) -> Path:
    """The folder of the checkpoint `path`: itself, its snapshot, or the folder that contains the file."""
    if path.is_dir():
        return snapshot_of(path)
    if path.parent.name == _VARIABLES.parent.name and (path.parent.parent / "saved_model.pb").exists():
        return path.parent.parent
    return path.parent


def weights_in(path: Path) -> Path:
    """The file with the weights of the checkpoint `path`: itself, or the one in its folder.

    Raises `CheckpointError` for a folder that is no checkpoint, and for a link that leads out of it.
    """
    if not path.is_dir():
        refuse_shard(path)
        return path
    home = home_of(path)
    folder = find_folder(home)
    weights = folder.weights(home) if folder else None
    if weights is None:
        kind = f"a {folder.name} without weights" if folder else "a folder that is no checkpoint"
        raise CheckpointError(
            f"{path} is {kind}{_broken_link(home)}. Expected a Hugging Face or timm folder (config.json and "
            f"{_WEIGHT_FILES[0]}), a SavedModel (saved_model.pb and {_VARIABLES}), or a file: a .pth, .pt, "
            f".safetensors, .h5 or .index."
        )
    _check_links(home)
    return weights


def _broken_link(home: Path) -> str:
    broken = (name for name in _WEIGHT_FILES if (home / name).is_symlink())
    return "".join(f" ({name} is a link to a file that is not there: download it again)" for name in broken)


def read_beside(path: Path) -> Beside:
    """Facts in the files beside the weights file `path`. Raises `CheckpointError` if they exclude a ResNet-50."""
    home = home_of(path)
    folder = find_folder(home)
    if folder is None:
        return Beside(*read_processor(home))
    _check_links(home)
    return folder.beside(home)


def _check_links(folder: Path) -> None:
    check_links(folder, f"{_VARIABLES.parent}/*")
