"""Labelled photos: a folder for each class, a CSV, or a folder without labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import EvaluationError
from ..images import photo_files

_SEED = 0
_FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "photo", "name")
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "class_id", "category", "target", "y", "index")
_SPLITS = frozenset({"train", "val", "valid", "validation", "test", "training", "testing"})
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Photo:
    path: Path
    name: str
    """Its path below the folder, or as written in the CSV."""
    written: tuple[str, ...]
    """Its classes as written; () if unlabelled."""


@dataclass(frozen=True, slots=True)
class Found:
    photos: tuple[Photo, ...]
    without_label: int = 0
    """Photos beside the classes' folders, which are left out."""
    other_files: int = 0
    """Files that are not photos."""
    hint: str = ""
    """A suggestion for the user, if another path was probably meant."""

    @property
    def is_labelled(self) -> bool:
        return any(photo.written for photo in self.photos)

    @property
    def written(self) -> tuple[str, ...]:
        """Every class name as written, once, sorted."""
        return tuple(sorted({name for photo in self.photos for name in photo.written}))


def find_photos(path: Path) -> Found:
    """The photos at `path`, not read yet. Raises `EvaluationError` if there are none."""
    if path.is_file():
        return _from_csv(path)
    if not path.is_dir():
        raise EvaluationError(
            f"{path} is no folder and no file. Name a folder of photos, or a CSV of the columns file and label."
        )
    files, others = photo_files(path)
    if not files:
        raise EvaluationError(f"{path} has no photos. Name the folder with a folder of photos for each class in it.")
    below = [file.relative_to(path) for file in files]
    folders = {each.parts[0] for each in below if len(each.parts) > 1}
    if folders and folders <= _SPLITS:
        raise EvaluationError(
            f"{path} has {' and '.join(sorted(folders))} in it, which are no classes. Name one of them: {path}/"
            f"{min(folders & {'val', 'valid', 'validation', 'test'} or folders)}"
        )
    photos = [
        Photo(file, _printable(str(name)), (_printable(name.parts[0]),) if len(name.parts) > 1 else ())
        for file, name in zip(files, below, strict=True)
    ]
    if not folders:
        tables = sorted(path.glob("*.csv"))
        hint = f"If {tables[0]} says what they show, name it instead of the folder." if tables else ""
        return Found(tuple(photos), other_files=others, hint=hint)
    labelled = tuple(photo for photo in photos if photo.written)
    return Found(labelled, without_label=len(photos) - len(labelled), other_files=others)


def in_order(photos: Sequence[Photo], most: int | None = None) -> list[Photo]:
    """The photos in a random order that is always the same; every prefix has about the same share of each class."""
    random = np.random.default_rng(_SEED)
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, photo in enumerate(photos):
        groups.setdefault(photo.written, []).append(number)
    places = np.empty(len(photos))
    for members in groups.values():
        shuffled = random.permutation(members)
        places[shuffled] = (np.arange(len(members)) + random.random(len(members))) / len(members)
    return [photos[number] for number in np.argsort(places, kind="stable")[:most]]


def _from_csv(path: Path) -> Found:
    """One row for each photo: its file, relative to the CSV, and its label. Several rows of a file: several labels."""
    rows = _rows(path)
    file_at, label_at, rows = _columns(rows, path)
    labels: dict[str, list[str]] = {}
    for row in rows:
        if len(row) <= file_at or not row[file_at].strip():
            continue
        written = labels.setdefault(row[file_at].strip(), [])
        if len(row) > label_at and row[label_at].strip() and row[label_at].strip() not in written:
            written.append(row[label_at].strip())
    photos = [Photo(path.parent / file, _printable(file), tuple(written)) for file, written in labels.items()]
    if not any(photo.path.is_file() for photo in photos):
        first = f": {photos[0].path} is no file" if photos else ""
        raise EvaluationError(f"{path} names no photo that is there{first}. Files are named relative to the CSV.")
    labelled = tuple(photo for photo in photos if photo.written)
    if not labelled:
        return Found(tuple(photos))
    return Found(labelled, without_label=len(photos) - len(labelled))


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = next((each for each in "\t,;" if each in first), ",")
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no CSV in UTF-8"
        raise EvaluationError(f"{path} cannot be read: {reason}. Name a folder, or a CSV of file and label.") from None


def _columns(rows: list[list[str]], path: Path) -> tuple[int, int, list[list[str]]]:
    """The columns of the file and the label, found by the header if there is one, and the rows after it."""
    if not rows:
        raise EvaluationError(f"{path} is empty. It needs a row for each photo: its file and its label.")
    header = [name.strip().lower() for name in rows[0]]
    file_at = next((header.index(name) for name in _FILE_COLUMNS if name in header), None)
    label_at = next((header.index(name) for name in _LABEL_COLUMNS if name in header), None)
    if file_at is not None and label_at is not None and not (path.parent / rows[0][file_at].strip()).is_file():
        return file_at, label_at, rows[1:]
    if (path.parent / rows[0][0].strip()).is_file():
        return 0, 1, rows
    # An unknown header: the file's column is the one that names a file in the next row.
    row = rows[1] if len(rows) > 1 else []
    files = [at for at, value in enumerate(row) if value.strip() and (path.parent / value.strip()).is_file()]
    file_at = files[0] if files else 0
    others = [at for at in range(len(row)) if at != file_at]
    return file_at, others[0] if others else file_at + 1, rows[1:] if files else rows


def _printable(name: str) -> str:
    """The name as valid UTF-8, which file names need not be, so that it can be printed and written as JSON."""
    return name.encode("utf-8", "replace").decode()


def some(names: Sequence[str]) -> str:
    """The first few names, for a sentence."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
