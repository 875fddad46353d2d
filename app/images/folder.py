"""The photos below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .decode import image_format

_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".mpo"})
_HEAD_BYTES = 64


def photo_files(folder: Path) -> tuple[list[Path], int]:
    """All photos below `folder` in the order of their names, and how many files there are no photos.

    Hidden files and folders are passed over; links to folders are not followed. A file that is called a photo and is
    none is one that cannot be read.
    """
    photos, others = [], 0
    for path in _files(folder):
        if _is_photo(path):
            photos.append(path)
        else:
            others += 1
    return photos, others


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _is_photo(path: Path) -> bool:
    """By its name's ending, else by its first bytes."""
    if path.suffix.lower() in _ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return image_format(file.read(_HEAD_BYTES)) is not None
    except OSError:
        return False
