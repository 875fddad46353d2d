"""The cache of the Hugging Face Hub: snapshots are folders of links into the repository's own blobs/.

The layout is huggingface_hub's (docs: "Understand caching"): `models--OWNER--NAME/{blobs,refs,snapshots/REVISION}`.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError
from ..files import read_bounded
from .json_file import unreadable

_SNAPSHOTS, _BLOBS, _MAIN = "snapshots", "blobs", Path("refs", "main")
_REVISION = re.compile(r"\w[\w.-]{0,127}")
_MAX_REVISION_BYTES = 256


def snapshot_of(folder: Path) -> Path:
    """The snapshot in `refs/main` of a repository's folder in the cache; any other folder is returned unchanged.

    Raises `CheckpointError` if that snapshot is missing, or if none is named and there are several.
    """
    snapshots = folder / _SNAPSHOTS
    if not (snapshots.is_dir() and ((folder / _BLOBS).is_dir() or (folder / _MAIN.parent).is_dir())):
        return folder
    found = sorted(each.name for each in snapshots.iterdir() if each.is_dir())
    revision = _main(folder / _MAIN)
    if revision is None and len(found) == 1:
        revision = found[0]
    if revision is None or revision not in found:
        said = f"refs/main is {revision[:64]}" if revision else "there is no refs/main"
        raise CheckpointError(
            f"{folder} is a repository of the Hugging Face cache in which {said}, and its snapshots are "
            f"{', '.join(found[:4]) or 'none'}. Name the one to serve ({snapshots}/…), or download it again."
        )
    snapshot = snapshots / revision
    if snapshot.resolve() != snapshots.resolve() / revision:
        raise CheckpointError(
            f"{snapshot} is a link that leads elsewhere, where the cache has a folder. Download it again."
        )
    return snapshot


def _main(path: Path) -> str | None:
    try:
        text = read_bounded(path, _MAX_REVISION_BYTES).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        text = ""
    if not _REVISION.fullmatch(text):
        raise CheckpointError(f"{path} names no revision. Download the repository again.")
    return text


def check_links(folder: Path, *patterns: str) -> None:
    """Raises `CheckpointError` for a link in `folder` that leads out of it: only files in the folder are served.

    A snapshot consists of links into the same repository's `blobs/`, which are allowed.
    """
    for path in (*folder.iterdir(), *(each for pattern in patterns for each in folder.glob(pattern))):
        check_link(path, folder)


def check_link(path: Path, folder: Path) -> None:
    """Raises `CheckpointError` if `path`, a file of `folder`, is a link that leads out of it."""
    if not path.is_symlink():
        return
    root = folder.resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"{path} is a link that leads to itself. Copy the file itself there.") from None
    if not target.is_relative_to(root) and target.parent != _blobs_of(root):
        raise CheckpointError(
            f"{path} is a link that leads out of its folder. Copy the files themselves: cp -rL {folder} COPY."
        )


def _blobs_of(root: Path) -> Path | None:
    """The `blobs/` folder of a snapshot. It must not be a link, since it is compared with resolved links."""
    return next((each.parent / _BLOBS for each in root.parents if each.name == _SNAPSHOTS), None)
