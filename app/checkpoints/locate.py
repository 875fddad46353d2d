"""The weights to serve: those of the setting, the single checkpoint in model_weights/, or torchvision's."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, printable
from .archives import is_other_archive
from .companions import is_companion, likely
from .folders import is_checkpoint_folder
from .onnx_data import beside_others
from .sharded import is_shard

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = Path("model_weights")
DEFAULT_PUBLISHED = "IMAGENET1K_V2"
OFFLINE_DEMO = "offline-demo"

# torchvision's weight names are enum members: capitals, digits and underscores.
_PUBLISHED_NAME = re.compile(r"^[A-Z][A-Z0-9_]*$")
# Files with the weights of an .onnx beside it.
_ONNX_DATA = (".onnx.data", ".onnx_data")
# Files beside a TensorFlow checkpoint's .index: values, graph, and the list of checkpoints.
_TENSORFLOW_COMPANION = re.compile(r"\.data-\d{5}-of-\d{5}$|\.meta$|^checkpoint$")


# Entries of checkpoint folders that frameworks write beside the weights: other copies, optimizers, assets.
_FOLDER_COMPANIONS = frozenset(
    {
        *("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx"),
        *("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "runs"),
        *("saved_model.pb", "fingerprint.pb", "keras_metadata.pb", "variables", "assets"),
        *("MLmodel", "conda.yaml", "python_env.yaml", "data", "state_dict.pth", "metadata"),
        *("blobs", "refs", "snapshots"),
    }
)
_TRAINING_STEP = re.compile(r"checkpoint-\d+")  # transformers' Trainer


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    path: Path
    """The file, or the folder that is the checkpoint."""


@dataclass(frozen=True, slots=True)
class PublishedName:
    name: str


@dataclass(frozen=True, slots=True)
class OfflineDemo:
    pass


Source = CheckpointFile | PublishedName | OfflineDemo


def locate(weights: str | None, folder: Path = WEIGHTS_FOLDER) -> Source:
    """The source of the weights, found without reading weights or using the network.

    `weights` is a file, a folder that is or contains one checkpoint, a torchvision weight name or "offline-demo". With
    None, the source is the checkpoint in `folder`, or torchvision's IMAGENET1K_V2 if there is none. Raises
    `CheckpointError` for a path that does not exist, and for a folder with several checkpoints.
    """
    if weights is None:
        found = _only_checkpoint(folder) if folder.is_dir() else None
        return CheckpointFile(found) if found else PublishedName(DEFAULT_PUBLISHED)
    if weights == OFFLINE_DEMO:
        return OfflineDemo()
    try:
        path = Path(weights).expanduser()
        path.stat()
    except RuntimeError:
        raise CheckpointError(
            f"RESNET_WEIGHTS is {weights[:200]}, and that home directory is not known here. Give the whole path."
        ) from None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass  # no such file: maybe a weight name, or a TensorFlow prefix
    except OSError as error:
        raise CheckpointError(
            f"RESNET_WEIGHTS is {weights[:200]}, which cannot be read: {error.strerror}. Give the path of a file that "
            f"the user that runs the service can read."
        ) from None
    if path.is_dir():
        if is_checkpoint_folder(path):
            return CheckpointFile(path)
        found = _only_checkpoint(path)
        if found is None:
            raise CheckpointError(f"RESNET_WEIGHTS is the folder {path}, which holds no checkpoint.")
        return CheckpointFile(found)
    if path.exists():
        return CheckpointFile(path)
    index = path.with_name(f"{path.name}.index")
    if index.exists():
        # TensorFlow names a checkpoint by the common prefix of its files.
        return CheckpointFile(index)
    if _PUBLISHED_NAME.match(weights):
        return PublishedName(weights)
    raise CheckpointError(
        f"RESNET_WEIGHTS is {weights}, and there is no such file. Give a checkpoint's path, a torchvision weight name "
        f"such as {DEFAULT_PUBLISHED}, or {OFFLINE_DEMO}."
    )


def _only_checkpoint(folder: Path) -> Path | None:
    """The only file or folder in `folder` that could be a checkpoint, or `folder` itself; None if there is none.

    Its content is checked by its reader later.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"Cannot look into {folder}: {error.strerror}. Make it readable for the user that runs the service."
        ) from None
    beside_onnx = beside_others(entries)
    found = [
        path
        for path in entries
        if path not in beside_onnx
        and not is_companion(path)
        and not path.name.endswith(_ONNX_DATA)
        and not _TENSORFLOW_COMPANION.search(path.name)
    ]
    found = _without_archives(folder, found)
    if is_checkpoint_folder(folder):
        strays = [
            path
            for path in found
            if path.name not in _FOLDER_COMPANIONS
            and not is_shard(path.name)
            and not _TRAINING_STEP.fullmatch(path.name)
        ]
        if not strays:
            return folder
    if len(found) > 1:
        found = likely(found)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"{folder} holds {len(found)} checkpoints: {names}. Leave one there, or name one with RESNET_WEIGHTS."
        )
    return found[0] if found else None


def _without_archives(folder: Path, found: list[Path]) -> list[Path]:
    """`found` without archives of other files, which are logged.

    Raises `CheckpointError` if there are several archives and nothing else: one of them may contain the weights.
    """
    if len(found) < 2:
        return found
    archives = [path for path in found if is_other_archive(path)]
    names = ", ".join(path.name for path in archives)
    if len(archives) == len(found):
        raise CheckpointError(
            f"{folder} holds no checkpoint, but archives: {names}. Unpack the one that has the weights there, and "
            f"leave its checkpoint there or name it with RESNET_WEIGHTS."
        )
    if archives:
        logger.info("Passed over in %s, since they are archives and no checkpoints: %s.", folder, printable(names))
    return [path for path in found if path not in archives]
